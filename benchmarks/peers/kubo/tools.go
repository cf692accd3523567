//go:build tools

// Package kubo names the program that `go build` makes here, so that go.sum covers it.
package kubo

import _ "github.com/ipfs/kubo/cmd/ipfs"
