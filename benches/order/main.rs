//! Which functions of mayfly a start needs, as a script for the linker that puts them side by side.
//!
//!     order PROGRAM MAP
//!
//! A page of a program that is touched brings the 15 around it with it, and each such group of pages costs the start a fault.
//! PROGRAM is run instruction by instruction through what it mostly does; MAP, the linker's, tells the functions. The script
//! goes to stdout. `make order` does all of it.

mod map;
mod scenes;
mod trace;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::{env, fs};

use map::Map;
use scenes::Fixture;

const HEADER: &str = "\
/* The functions of a start, and then those of other things that are mostly done, each in a place of their own: see benches/order.
   Made by `make order`. A name that matches nothing does no harm: what is not listed is linked as ever. */
SECTIONS
{
";

/// What is done, in the order of what it is worth: a function is in the first place where it is needed.
const PLACES: [(&str, &[scenes::Scene]); 4] = [
    ("start", &[scenes::boot, scenes::restore]),
    ("api", &[scenes::serve]),
    ("snapshots", &[scenes::freeze, scenes::load]),
    ("devices", &[scenes::disk]),
];

fn main() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1).filter(|argument| argument != "--bench");
    let (Some(program), Some(map)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("order PROGRAM MAP: see `make order`"));
    };
    let map = Map::parse(&fs::read_to_string(map)?);
    let stage = Fixture::new(PathBuf::from(program))?;
    let mut script = String::from(HEADER);
    // The first begins with a group of pages, and the others go on in the group where the one before ends.
    let mut alignment = 64 << 10;
    let mut known = BTreeSet::new();
    for (place, scenes) in PLACES {
        let mut here = BTreeSet::new();
        for scene in scenes {
            let executed = scene(&stage)?;
            here.extend(executed.iter().filter_map(|address| map.pattern(*address)));
        }
        here.retain(|pattern| known.insert(pattern.clone()));
        eprintln!("{place}: {} functions", here.len());
        script += &format!("    .text.{place}_parts : ALIGN({alignment})\n    {{\n");
        alignment = 64;
        script.extend(here.iter().map(|pattern| format!("        {pattern}\n")));
        script += "    }\n";
    }
    script += "}\nINSERT AFTER .text;\n";
    io::stdout().write_all(script.as_bytes())
}
