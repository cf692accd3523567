"""The modules of protobuf messages are those that their schemas make."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dstore.core import proto

SCHEMAS = sorted(Path(proto.__path__[0]).glob("*.proto"))


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is a dev dependency"
)
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.stem)
def test_the_generated_module_is_that_of_the_schema(tmp_path: Path, schema: Path) -> None:
    root = schema.parents[3]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(root), *outputs, str(schema)],
        check=True,
    )
    for suffix in (".py", ".pyi"):
        name = f"{schema.stem}_pb2{suffix}"
        made = tmp_path / "dstore/core/proto" / name
        assert made.read_bytes() == schema.with_name(name).read_bytes()
