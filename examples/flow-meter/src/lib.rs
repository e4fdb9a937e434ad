//! An element that lives outside the `elements` crate, and the list of elements that its program offers to compositions.
//!
//! [`flow_meter`] is the element; `main.rs` runs an ARMOR that may have it. See docs/adding-an-element.md.

pub mod flow_meter;

/// Every element of ARMOR, and this crate's own.
#[must_use]
pub fn kinds() -> Vec<armor_core::element::ElementKind> {
    let mut kinds = armor_elements::all();
    kinds.push(armor_core::element::ElementKind::of::<flow_meter::FlowMeter>());
    kinds
}

#[cfg(test)]
mod tests {
    use armor_core::composition::Composition;

    #[test]
    fn the_composition_beside_the_program_names_elements_that_exist_and_keys_that_they_know() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/meter-daemon.toml");
        let composition = Composition::read(file.as_ref(), &super::kinds());
        assert!(composition.as_ref().is_ok_and(|read| read.elements().iter().any(|name| name == "flow_meter")), "{composition:?}");
    }
}
