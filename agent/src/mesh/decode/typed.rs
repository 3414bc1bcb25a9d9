//! One object's value → its type, and what is wrong with it by field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::value::{self, Notes};
use crate::mesh::field::{Faults, FieldPath, at};

/// Reads a value as `T`, noting a wrong type and every field that `T` does not have.
pub(super) fn typed<T: DeserializeOwned>(value: Value, faults: &mut Faults) -> Option<T> {
    let mut notes = Notes::default();
    let read = value::read(value, &mut notes);
    for path in std::mem::take(&mut notes.unknown) {
        // Whoever wrote the status or the managed fields was no person; a newer cluster may know more.
        let machine_made =
            path.starts_with("status") || path.0.get(1) == Some(&"managedFields".into());
        if !machine_made && !faults.fields_may_be_new {
            faults.add(
                path,
                "is not a field of this kind: correct its name or remove it",
            );
        }
    }
    read_or_fault(read, &at![], notes, faults)
}

/// Reads a value, found at `place` of its object, as `T`, which need not have all of its fields.
pub(super) fn partly_typed<T: DeserializeOwned>(
    place: &FieldPath,
    value: Value,
    faults: &mut Faults,
) -> Option<T> {
    let mut notes = Notes::default();
    let read = value::read(value, &mut notes);
    read_or_fault(read, place, notes, faults)
}

fn read_or_fault<T>(
    read: Result<T, serde_json::Error>,
    place: &FieldPath,
    notes: Notes,
    faults: &mut Faults,
) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        Err(error) => {
            let mut path = place.clone();
            path.0.extend(notes.failed.unwrap_or_default().0);
            faults.add(path, error.to_string());
            None
        }
    }
}
