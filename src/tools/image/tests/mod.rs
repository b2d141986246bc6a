//! Images that these tests build, good and hostile.
//!
//! | module | subject |
//! |---|---|
//! | `layout` | builder of layouts |
//! | `program` | sources of kernel, command line and initrd |
//! | `selection` | tags, digests and platforms |
//! | `content` | layers, links, whiteouts and limits |
//! | `mutation` | damaged images |

mod content;
mod layout;
mod mutation;
mod program;
mod selection;
