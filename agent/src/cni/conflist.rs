//! Our entry in a network configuration list of the container runtime: put in at the end of the chain, and taken out again,
//! every other byte as it was.
//!
//! The list belongs to the network's own agent (kindnet, Calico, Cilium, flannel), which may write it anew at any time and
//! put in what we have never heard of. So the text is changed, not a reading of it.

use std::ops::Range;

use serde_json::{Deserializer, Value};

/// The name of the plugin, as `type` in a list and as a program.
pub(super) const TYPE: &str = "culvert-cni";

/// A list of plugins, by the places of its parts in the text.
#[derive(Debug)]
pub(super) struct Conflist<'a> {
    text: &'a str,
    /// Of the array, with its brackets.
    array: Range<usize>,
    elements: Vec<(Range<usize>, Value)>,
}

/// What a text is, of those that a runtime reads.
#[derive(Debug)]
pub(super) enum Configuration<'a> {
    /// A chain of plugins.
    List(Conflist<'a>),
    /// A single plugin: `cniVersion` and `name` of it.
    Single(Value),
}

/// Reads a network configuration; `None` if it is none.
pub(super) fn read(text: &str) -> Option<Configuration<'_>> {
    let whole: Value = serde_json::from_str(text).ok()?;
    let has_name = |value: &Value, field: &str| value.get(field).is_some_and(Value::is_string);
    if !has_name(&whole, "name") {
        return None;
    }
    if whole.get("plugins").is_none() {
        return has_name(&whole, "type").then_some(Configuration::Single(whole));
    }
    let array = member(text, "plugins")?;
    let elements = elements(text, &array)?;
    if elements.is_empty() {
        return None;
    }
    Some(Configuration::List(Conflist {
        text,
        array,
        elements,
    }))
}

impl Configuration<'_> {
    /// The plugins that it names besides ours.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        let plugins: Vec<&Value> = match self {
            Self::List(list) => list.elements.iter().map(|(_, plugin)| plugin).collect(),
            Self::Single(single) => vec![single],
        };
        plugins
            .into_iter()
            .filter_map(|plugin| plugin.get("type")?.as_str())
            .filter(|name| *name != TYPE)
    }
}

impl Conflist<'_> {
    /// Whether our entry is in it, whatever it says.
    pub(super) fn has_entry(&self) -> bool {
        self.elements.iter().any(|(_, value)| is_ours(value))
    }

    /// The text with `entry` as the last of the chain; `None` if it is so already.
    pub(super) fn with(&self, entry: &Value) -> Option<String> {
        let ours: Vec<_> = self
            .elements
            .iter()
            .filter(|(_, one)| is_ours(one))
            .collect();
        let last = self.elements.last()?;
        if ours.len() == 1 && last.1 == *entry {
            return None;
        }
        let without = self.without();
        let text = without.as_deref().unwrap_or(self.text);
        let Some(Configuration::List(others)) = read(text) else {
            // Nothing but ours was in it: then it is no network.
            return None;
        };
        let (last, _) = others.elements.last()?;
        let mut changed = text[..last.end].to_owned();
        changed.push(',');
        changed.push_str(others.indentation());
        changed.push_str(&entry.to_string());
        changed.push_str(&text[last.end..]);
        Some(changed)
    }

    /// The text without any entry of ours; `None` if there is none, or nothing but that.
    pub(super) fn without(&self) -> Option<String> {
        let others: Vec<_> = self
            .elements
            .iter()
            .filter(|(_, one)| !is_ours(one))
            .collect();
        if others.len() == self.elements.len() {
            return None;
        }
        let ((first, _), (last, _)) = (self.elements.first()?, self.elements.last()?);
        let mut changed = self.text[..first.start].to_owned();
        let mut is_first = true;
        others.first()?;
        for (index, (place, plugin)) in self.elements.iter().enumerate() {
            if is_ours(plugin) {
                continue;
            }
            // With the comma and the white space before it, but for the first that stays.
            let before = index
                .checked_sub(1)
                .and_then(|before| self.elements.get(before));
            let begin = before
                .filter(|_| !is_first)
                .map_or(place.start, |(one, _)| one.end);
            changed.push_str(&self.text[begin..place.end]);
            is_first = false;
        }
        changed.push_str(&self.text[last.end..]);
        Some(changed)
    }

    /// White space as it stands before the first element.
    fn indentation(&self) -> &str {
        let first = self
            .elements
            .first()
            .map_or(self.array.end, |(one, _)| one.start);
        &self.text[self.array.start + 1..first]
    }
}

/// A list made of a single plugin and our entry. The plugin keeps every field that it has.
pub(super) fn list_of(single: &Value, entry: &Value) -> String {
    let mut list = serde_json::Map::new();
    for field in ["cniVersion", "name"] {
        if let Some(value) = single.get(field) {
            list.insert(field.to_owned(), value.clone());
        }
    }
    let plugins = vec![single.clone(), entry.clone()];
    list.insert("plugins".to_owned(), plugins.into());
    format!("{:#}\n", Value::Object(list))
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(TYPE)
}

/// Where the value of a field of the outermost object is.
fn member(text: &str, field: &str) -> Option<Range<usize>> {
    let mut at = skip(text, 0, '{')?;
    loop {
        let (key, value) = value_at(text, at)?;
        let begin = skip(text, key.end, ':')?;
        let (place, _) = value_at(text, begin)?;
        if value.as_str() == Some(field) {
            return Some(place);
        }
        at = skip(text, place.end, ',')?;
    }
}

fn elements(text: &str, array: &Range<usize>) -> Option<Vec<(Range<usize>, Value)>> {
    let mut found = Vec::new();
    let mut at = skip(text, array.start, '[')?;
    while let Some(one) = value_at(text, at) {
        let end = one.0.end;
        found.push(one);
        match skip(text, end, ',') {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(found)
}

/// The value that begins at `at` or behind white space there.
fn value_at(text: &str, at: usize) -> Option<(Range<usize>, Value)> {
    let rest = text.get(at..)?;
    let begin = at + rest.len() - rest.trim_start().len();
    let mut values = Deserializer::from_str(&text[begin..]).into_iter();
    let value = values.next()?.ok()?;
    Some((begin..begin + values.byte_offset(), value))
}

/// Where the text goes on behind a sign.
fn skip(text: &str, at: usize, sign: char) -> Option<usize> {
    let rest = text.get(at..)?;
    let after = rest.trim_start().strip_prefix(sign)?;
    Some(text.len() - after.len())
}

#[cfg(test)]
mod tests;
