//! The elements of ARMOR, one file each, named as the thesis names them.
//!
//! [`all`] lists them. A file in `src/` is an element, except [`operations`]; an element that has parts has them in a folder of
//! its name. What several elements need lies in a folder too (`endpoints`: sockets towards applications; `links`: sockets between ARMORs).
//!
//! Invariant: elements meet only in operations.

pub mod endpoints;
pub mod links;
pub mod operations;

include!(concat!(env!("OUT_DIR"), "/elements.rs"));

#[cfg(test)]
mod tests {
    #[test]
    fn element_names_follow_their_files_and_examples_parse() {
        for kind in super::all() {
            // Many need it beside them.
            let reliable = if kind.name == "reliable_messaging" { "" } else { "[[element]]\nname = \"reliable_messaging\"\n" };
            let text = format!("{reliable}[[element]]\nname = {:?}\n{}", kind.name, kind.example);
            if let Err(error) = armor_core::composition::Composition::parse(kind.name, &text, &super::all()) {
                panic!("the example of {} does not parse: {error}", kind.name);
            }
            assert!(!kind.purpose.is_empty());
        }
    }
}
