//! Istio's configuration: a text in a `ConfigMap`.

use serde_json::{Map, Value};

use super::yaml::{self, Node};
use crate::mesh::{FieldPath, is_config_map};

/// Makes a value of the text, as which the mesh reads it. Whatever is no such `ConfigMap` stays as it is.
///
/// # Errors
/// The text is no YAML: where, and why.
pub(super) fn expand(value: &mut Value) -> Result<(), (FieldPath, String)> {
    let name = value["metadata"]["name"].as_str();
    if value["kind"] != "ConfigMap" || !name.is_some_and(is_config_map) {
        return Ok(());
    }
    let mesh = value.get_mut("data").and_then(|data| data.get_mut("mesh"));
    let Some(Value::String(text)) = mesh.as_deref() else {
        return Ok(());
    };
    let path = || FieldPath(vec!["data".into(), "mesh".into()]);
    let documents = yaml::parse(text).map_err(|error| {
        let line = error.position.line;
        (path(), format!("line {line} of it: {error}"))
    })?;
    let read = documents.first().map(Node::to_json);
    if let Some(place) = mesh {
        *place = read.unwrap_or_else(|| Value::Object(Map::new()));
    }
    Ok(())
}
