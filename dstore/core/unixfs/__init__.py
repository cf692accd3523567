"""UnixFS: files, directories and symbolic links as DAGs.

`profile` fixes the choices that CIDs depend on, `file` and `directory` build and read,
`node` says what one block is, `walk` goes over whole DAGs.  No I/O: blocks in, blocks out.
"""

from dstore.core.unixfs.directory import (
    Absent,
    Descend,
    DirectoryLister,
    Found,
    Listing,
    build_directory,
    build_symlink,
    listing,
    lookup,
)
from dstore.core.unixfs.file import (
    Block,
    Extent,
    FileBuilder,
    Link,
    children_in_range,
    make_leaf,
)
from dstore.core.unixfs.node import (
    Directory,
    Entry,
    File,
    FileChild,
    HamtShard,
    Mtime,
    Node,
    Symlink,
    name_fault,
    parse,
    parse_child,
)
from dstore.core.unixfs.profile import (
    DEFAULT_PROFILE,
    PROFILES,
    Profile,
    UnknownProfile,
    profile_named,
)
from dstore.core.unixfs.walk import Budget, DagWalk, Visit, iter_dag, links_of

__all__ = [
    "DEFAULT_PROFILE",
    "PROFILES",
    "Absent",
    "Block",
    "Budget",
    "DagWalk",
    "Descend",
    "Directory",
    "DirectoryLister",
    "Entry",
    "Extent",
    "File",
    "FileBuilder",
    "FileChild",
    "Found",
    "HamtShard",
    "Link",
    "Listing",
    "Mtime",
    "Node",
    "Profile",
    "Symlink",
    "UnknownProfile",
    "Visit",
    "build_directory",
    "build_symlink",
    "children_in_range",
    "iter_dag",
    "links_of",
    "listing",
    "lookup",
    "make_leaf",
    "name_fault",
    "parse",
    "parse_child",
    "profile_named",
]
