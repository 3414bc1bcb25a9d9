//! A value that is read by a type, field by field: where reading fails, and which fields the type does not have.
//!
//! One layer around the value, because each layer is compiled again for each of Kubernetes' large types:
//! `serde_path_to_error` around `serde_ignored` made the agent's text 2 MB longer (15.7 MB against 13.6).

use std::vec;

use serde::de::value::StringDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value, map};

use crate::mesh::field::{FieldPath, Segment};

/// What was noticed while a value was read.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Fields that the type does not have.
    pub(super) unknown: Vec<FieldPath>,
    /// The field whose reading failed first.
    pub(super) failed: Option<FieldPath>,
    /// Where reading is now.
    here: FieldPath,
}

/// Reads a value as `T`.
///
/// # Errors
/// serde's sentence, without the field that it is about: that is in the notes.
pub(super) fn read<T: DeserializeOwned>(value: Value, notes: &mut Notes) -> Result<T, Error> {
    let read = T::deserialize(Noted { value, notes });
    if read.is_err() && notes.failed.is_none() {
        notes.failed = Some(FieldPath::default());
    }
    read
}

impl Notes {
    /// Reads a part.
    fn within<T>(
        &mut self,
        segment: Segment,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.here.0.push(segment);
        let read = read(self);
        self.left(read.is_err());
        read
    }

    fn left(&mut self, failed: bool) {
        if failed && self.failed.is_none() {
            self.failed = Some(self.here.clone());
        }
        self.here.0.pop();
    }
}

/// A value, and the notes of who reads it.
struct Noted<'a> {
    value: Value,
    notes: &'a mut Notes,
}

impl<'de> Deserializer<'de> for Noted<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(values) => {
                let len = values.len();
                let mut elements = Elements {
                    rest: values.into_iter().enumerate(),
                    notes: self.notes,
                };
                let read = visitor.visit_seq(&mut elements)?;
                if elements.rest.len() > 0 {
                    return Err(Error::invalid_length(len, &"fewer elements in array"));
                }
                Ok(read)
            }
            Value::Object(fields) => visitor.visit_map(Fields::new(fields, self.notes)),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        enumeration: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Object(fields) => {
                let mut fields = fields.into_iter();
                let (Some((name, value)), None) = (fields.next(), fields.next()) else {
                    let found = Unexpected::Map;
                    return Err(Error::invalid_value(found, &"map with a single key"));
                };
                visitor.visit_enum(Variant {
                    name,
                    value,
                    notes: self.notes,
                })
            }
            scalar => scalar.deserialize_enum(enumeration, variants, visitor),
        }
    }

    /// What a type asks for a field that it does not have.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.notes.unknown.push(self.notes.here.clone());
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

struct Elements<'a> {
    rest: std::iter::Enumerate<vec::IntoIter<Value>>,
    notes: &'a mut Notes,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, value)) = self.rest.next() else {
            return Ok(None);
        };
        let read = |notes: &mut Notes| seed.deserialize(Noted { value, notes });
        self.notes.within(Segment::Index(index), read).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Fields<'a> {
    rest: map::IntoIter,
    /// The one whose name was read last.
    current: Option<(String, Value)>,
    notes: &'a mut Notes,
}

impl<'a> Fields<'a> {
    fn new(fields: Map<String, Value>, notes: &'a mut Notes) -> Self {
        Self {
            rest: fields.into_iter(),
            current: None,
            notes,
        }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        let text: StringDeserializer<Error> = name.clone().into_deserializer();
        self.current = Some((name, value));
        seed.deserialize(text).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.current.take() else {
            return Err(Error::custom("value is missing"));
        };
        let read = |notes: &mut Notes| seed.deserialize(Noted { value, notes });
        self.notes.within(Segment::Key(name), read)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A variant that has a value: `{variant: value}`.
struct Variant<'a> {
    name: String,
    value: Value,
    notes: &'a mut Notes,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Noted<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), Error> {
        let name: StringDeserializer<Error> = self.name.into_deserializer();
        let content = Noted {
            value: self.value,
            notes: self.notes,
        };
        Ok((seed.deserialize(name)?, content))
    }
}

impl<'de> VariantAccess<'de> for Noted<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        serde::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::{Notes, read};

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Menu {
        title: String,
        #[serde(default)]
        dishes: Vec<Dish>,
        notes: Option<BTreeMap<String, u8>>,
        corner: Option<(u8, u8)>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Dish {
        price: u16,
        kind: Option<Kind>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    enum Kind {
        Soup,
        Roast { minutes: u8 },
        Named(String),
    }

    /// What reading a menu says: the sentence and the field, and the fields nobody knows.
    fn complaints(value: serde_json::Value) -> (Option<String>, Vec<String>) {
        let mut notes = Notes::default();
        let read = read::<Menu>(value, &mut notes);
        let failed = read.err().map(|error| {
            let place = notes.failed.take().unwrap();
            format!("{place}: {error}")
        });
        let unknown = notes.unknown.iter().map(ToString::to_string);
        (failed, unknown.collect())
    }

    #[test]
    fn what_fits_is_read_whole() {
        let value = json!({
            "title": "noon",
            "dishes": [
                {"price": 7, "kind": "soup"},
                {"price": 9, "kind": {"roast": {"minutes": 5}}},
                {"price": 1, "kind": {"named": "tea"}},
                {"price": 2, "kind": null},
            ],
            "notes": {"salt": 3},
            "corner": [1, 2],
        });
        let mut notes = Notes::default();
        let menu: Menu = read(value, &mut notes).unwrap();
        let kinds: Vec<_> = menu.dishes.into_iter().map(|dish| dish.kind).collect();
        let expected = [
            Some(Kind::Soup),
            Some(Kind::Roast { minutes: 5 }),
            Some(Kind::Named("tea".to_owned())),
            None,
        ];
        assert_eq!(kinds, expected);
        assert_eq!(menu.notes.unwrap()["salt"], 3);
        assert_eq!(menu.corner, Some((1, 2)));
        assert!(notes.unknown.is_empty() && notes.failed.is_none());
    }

    #[test]
    fn the_first_failure_names_its_field() {
        for (value, expected) in [
            (
                json!(3),
                ": invalid type: integer `3`, expected struct Menu",
            ),
            (json!({}), ": missing field `title`"),
            (
                json!({"title": null}),
                "title: invalid type: null, expected a string",
            ),
            (
                json!({"title": "x", "dishes": [{"price": 1}, {"price": "dear"}]}),
                "dishes[1].price: invalid type: string \"dear\", expected u16",
            ),
            (
                json!({"title": "x", "dishes": [{"price": 70_000}]}),
                "dishes[0].price: invalid value: integer `70000`, expected u16",
            ),
            (
                json!({"title": "x", "dishes": [{"price": 1, "kind": {"roast": {"minutes": "long"}}}]}),
                "dishes[0].kind.minutes: invalid type: string \"long\", expected u8",
            ),
            (
                json!({"title": "x", "dishes": [{"price": 1, "kind": "stew"}]}),
                "dishes[0].kind: unknown variant `stew`, expected one of `soup`, `roast`, `named`",
            ),
            (
                json!({"title": "x", "notes": {"a.b": 300}}),
                "notes[a.b]: invalid value: integer `300`, expected u8",
            ),
            (
                json!({"title": "x", "corner": [1, 2, 3]}),
                "corner: invalid length 3, expected fewer elements in array",
            ),
        ] {
            assert_eq!(
                complaints(value.clone()).0.as_deref(),
                Some(expected),
                "{value}"
            );
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_all_named() {
        let value = json!({
            "title": "noon",
            "colour": {"of": ["paper"]},
            "dishes": [{"price": 1, "spice": 2}, {"price": 3, "kind": {"roast": {"minutes": 1, "oven": 2}}}],
        });
        let unknown = ["colour", "dishes[0].spice", "dishes[1].kind.oven"];
        assert_eq!(
            complaints(value),
            (None, unknown.map(str::to_owned).to_vec())
        );
    }
}
