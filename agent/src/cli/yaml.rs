//! JSON values as YAML 1.2 block style. Any string that is not plainly a word is double-quoted: JSON's
//! escapes are YAML's.

use serde_json::Value;

/// The value as a document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    node(value, 0, false, &mut text);
    text
}

/// Writes a value that begins at the cursor; `inline` if something precedes it on the line.
fn node(value: &Value, indent: usize, inline: bool, text: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                start(indent, inline && index == 0, text);
                text.push_str("- ");
                node(item, indent + 2, true, text);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (key, field)) in fields.iter().enumerate() {
                start(indent, inline && index == 0, text);
                scalar(key, text);
                text.push(':');
                // A collection stands below its key; anything else, behind it.
                let below = match field {
                    Value::Array(items) => !items.is_empty(),
                    Value::Object(inner) => !inner.is_empty(),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
                };
                if below {
                    text.push('\n');
                    node(field, indent + 2, false, text);
                } else {
                    text.push(' ');
                    node(field, indent + 2, true, text);
                }
            }
        }
        Value::String(string) => {
            scalar(string, text);
            text.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            text.push_str(&value.to_string());
            text.push('\n');
        }
    }
}

fn start(indent: usize, inline: bool, text: &mut String) {
    if !inline {
        text.extend(std::iter::repeat_n(' ', indent));
    }
}

fn scalar(string: &str, text: &mut String) {
    if is_plain(string) {
        text.push_str(string);
    } else {
        text.push_str(&Value::from(string).to_string());
    }
}

/// Words that no YAML version takes for anything but text: a letter first, then letters, digits and what
/// stands inside names and paths.
fn is_plain(string: &str) -> bool {
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let mut characters = string.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && characters.all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !reserved.contains(&string.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use saphyr::{LoadableYamlNode, Scalar, Yaml};
    use serde_json::{Value, json};

    use super::document;

    #[test]
    fn collections_nest_as_people_write_them() {
        let value = json!({"a": [{"b": 1, "c": []}, ["x", "z"]], "d": {"e": null}, "f": "no"});
        assert_eq!(
            document(&value),
            "a:\n  - b: 1\n    c: []\n  - - x\n    - z\nd:\n  e: null\nf: \"no\"\n"
        );
        assert_eq!(document(&json!([])), "[]\n");
    }

    fn read(yaml: &Yaml<'_>) -> Value {
        match yaml {
            Yaml::Value(Scalar::Null) => Value::Null,
            Yaml::Value(Scalar::Boolean(value)) => json!(value),
            Yaml::Value(Scalar::Integer(value)) => json!(value),
            Yaml::Value(Scalar::String(value)) => json!(value),
            Yaml::Sequence(items) => items.iter().map(read).collect(),
            Yaml::Mapping(fields) => fields
                .iter()
                .map(|(key, value)| (key.as_str().expect("keys are text").to_owned(), read(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => panic!("not written by us: {other:?}"),
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-z0-9:#{}, -]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_yaml_reader_gets_back_what_was_written(value in values()) {
            let text = document(&value);
            let documents = Yaml::load_from_str(&text).expect(&text);
            prop_assert_eq!(documents.len(), 1);
            prop_assert_eq!(read(&documents[0]), value, "{}", text);
        }
    }
}
