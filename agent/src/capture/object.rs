//! The eBPF object inside this program, and the globals that are set before each load of it.
//!
//! aya would set them as well, but from values that have to outlive its loader, and one loader outlives all pods.

use std::{collections::BTreeMap, ops::Range};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// The programs, as `cargo xtask build` compiled them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_EBPF_OBJECT"));

/// What is wrong with the object, which is the build's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// It is no ELF file.
    #[error("it cannot be read")]
    Read(#[from] object::Error),
    /// The programs know the global by another name, or as another type.
    #[error("it has no global {name} of {bytes} bytes")]
    Global { name: &'static str, bytes: usize },
}

/// Where the object's symbols of data are in its file.
#[derive(Debug)]
pub(super) struct Globals(BTreeMap<&'static str, Range<usize>>);

impl Globals {
    /// Reads the object's symbols.
    pub(super) fn of_object() -> Result<Self, ObjectError> {
        let file = object::File::parse(OBJECT)?;
        let mut globals = BTreeMap::new();
        let data = |symbol: &object::Symbol<'_, '_>| symbol.kind() == object::SymbolKind::Data;
        for symbol in file.symbols().filter(data) {
            let Some(section) = symbol.section_index() else {
                continue;
            };
            let section = file.section_by_index(section)?;
            let place = section.file_range().and_then(|(offset, _)| {
                let start = offset.checked_add(symbol.address())?;
                let start = start.checked_sub(section.address())?;
                let end = start.checked_add(symbol.size())?;
                Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
            });
            let name = symbol.name()?;
            globals.extend(place.map(|place| (name, place)));
        }
        Ok(Self(globals))
    }

    /// A copy of the object.
    pub(super) fn image(&self) -> Image<'_> {
        Image {
            globals: self,
            bytes: OBJECT.to_vec(),
        }
    }
}

/// The object as one load needs it.
pub(super) struct Image<'a> {
    globals: &'a Globals,
    bytes: Vec<u8>,
}

impl Image<'_> {
    /// Sets a global to a value in the byte order of this machine, for which the programs are compiled.
    pub(super) fn set<const N: usize>(
        &mut self,
        name: &'static str,
        value: [u8; N],
    ) -> Result<(), ObjectError> {
        let place = self.globals.0.get(name);
        let place = place.and_then(|place| self.bytes.get_mut(place.clone()));
        let missing = ObjectError::Global { name, bytes: N };
        let place = place.filter(|place| place.len() == N).ok_or(missing)?;
        place.copy_from_slice(&value);
        Ok(())
    }

    /// The ELF file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_is_set_where_it_is_and_nowhere_else() {
        let globals = Globals::of_object().unwrap();
        let mut image = globals.image();
        image
            .set("POD_COOKIE", 0x0102_0304_0506_0708_u64.to_ne_bytes())
            .unwrap();
        let changed = image
            .bytes()
            .iter()
            .zip(OBJECT)
            .filter(|(new, old)| new != old);
        assert_eq!(changed.count(), 8);
    }

    #[test]
    fn unknown_globals_and_other_types_are_refused() {
        let globals = Globals::of_object().unwrap();
        let mut image = globals.image();
        let unknown = image.set("POD_COOKY", [0; 8]).unwrap_err();
        assert_eq!(unknown.to_string(), "it has no global POD_COOKY of 8 bytes");
        let narrow = image.set("POD_COOKIE", [0; 4]).unwrap_err();
        assert_eq!(narrow.to_string(), "it has no global POD_COOKIE of 4 bytes");
        assert_eq!(image.bytes(), OBJECT);
    }
}
