//! The schema in `deploy/crds` and the type here say the same.

use std::collections::BTreeSet;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::Value;

use super::{GlobalLimiter, Limit, LimiterService, RateLimitPolicySpec, TargetReference};
use crate::mesh::{Interner, decode};
use crate::sources::for_test::documents;

const CRD: &str = include_str!("../../../../deploy/crds/ratelimitpolicies.yaml");
const MANUAL: &str = include_str!("../../../../docs/operations.md");

/// The schema of the whole object.
fn schema() -> Value {
    let definition = documents(CRD).remove(0);
    let version = &definition["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert_eq!(definition["spec"]["group"], "culvert.dev");
    version["schema"]["openAPIV3Schema"].clone()
}

/// Tells which fields a struct asks for, and gives it none.
struct Fields<'a>(&'a mut BTreeSet<String>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0
            .extend(fields.iter().map(|field| (*field).to_owned()));
        Err(de::Error::custom("only asked"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("no struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de>>() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    assert!(T::deserialize(Fields(&mut found)).is_err());
    found
}

/// Fields that the schema knows at a place under `spec`.
fn properties(pointer: &str) -> BTreeSet<String> {
    let schema = schema();
    let place = schema.pointer(&format!("/properties/spec{pointer}"));
    let known = place.and_then(|place| place["properties"].as_object());
    known
        .unwrap_or_else(|| panic!("nothing at {pointer}"))
        .keys()
        .cloned()
        .collect()
}

#[test]
fn the_schema_has_each_field_that_is_read_and_no_other() {
    assert_eq!(properties(""), fields::<RateLimitPolicySpec>());
    assert_eq!(
        properties("/properties/targetRefs/items"),
        fields::<TargetReference>()
    );
    assert_eq!(properties("/properties/limits/items"), fields::<Limit>());
    assert_eq!(properties("/properties/global"), fields::<GlobalLimiter>());
    assert_eq!(
        properties("/properties/global/properties/service"),
        fields::<LimiterService>()
    );
}

/// What is wrong with a value; knows the words that the schema uses, and no others.
fn faults(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (word, rule) in schema.as_object().into_iter().flatten() {
        let holds = match word.as_str() {
            "type" => match rule.as_str().unwrap_or_default() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64() || value.is_u64(),
                "boolean" => value.is_boolean(),
                other => panic!("type {other}"),
            },
            "required" => {
                let mut names = rule.as_array().into_iter().flatten();
                // It speaks about objects only.
                !value.is_object()
                    || names.all(|name| value.get(name.as_str().unwrap_or_default()).is_some())
            }
            "enum" => rule.as_array().is_some_and(|list| list.contains(value)),
            "minItems" => value.as_array().map(Vec::len) >= rule.as_u64().map(size),
            "maxItems" => value.as_array().map(Vec::len) <= rule.as_u64().map(size),
            "minLength" => value.as_str().map(str::len) >= rule.as_u64().map(size),
            "maxLength" => value.as_str().map(str::len) <= rule.as_u64().map(size),
            "minimum" => value.as_i64() >= rule.as_i64(),
            "maximum" => value.as_i64() <= rule.as_i64(),
            "pattern" => {
                let pattern = regex::Regex::new(rule.as_str().unwrap_or_default()).unwrap();
                pattern.is_match(value.as_str().unwrap_or_default())
            }
            "anyOf" => {
                let mut any = rule.as_array().into_iter().flatten();
                any.any(|one| faults(one, value, path).is_empty())
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let path = format!("{path}.{key}");
                    match rule.get(key) {
                        Some(rule) => found.extend(faults(rule, inner, &path)),
                        None => found.push(format!("{path}: unknown")),
                    }
                }
                true
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(faults(rule, item, &format!("{path}[{index}]")));
                }
                true
            }
            "description" | "format" | "x-kubernetes-preserve-unknown-fields" => true,
            other => panic!("{other} is not known here"),
        };
        if !holds {
            found.push(format!("{path}: {word}"));
        }
    }
    found
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Both the schema and the agent take an object, or neither does.
#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    let yaml = format!(
        "apiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    );
    let object = documents(&yaml).remove(0);
    let mut known = object.clone();
    // The API server's own.
    known["metadata"] = serde_json::json!({});
    assert_eq!(faults(&schema(), &known, ""), expected, "{spec}");
    let read = decode(object, &mut Interner::default());
    assert_eq!(read.is_ok(), expected.is_empty(), "{spec}: {read:?}");
}

const TARGET: &str = "targetRefs: [{kind: Service, name: s}]";

#[test]
fn the_schema_takes_what_the_agent_takes() {
    for limits in [
        "limits: [{requests: 10}]",
        "limits: [{requests: 10, period: 1m30s, burst: 20, route: r, per: [clientIdentity, {header: x-user}, path]}]",
        "limits: [{per: [{key: a, value: b}]}], global: {service: {name: l, port: 8081}}",
        "limits: [{per: [method]}], global: {service: {name: l, namespace: b, port: 8081}, domain: d, timeout: 50ms, failClosed: true}",
    ] {
        check(&format!("{{{TARGET}, {limits}}}"), &[]);
    }
    check("{limits: [{requests: 1}]}", &[".spec: required"]);
    check(
        &format!("{{{TARGET}, limits: []}}"),
        &[".spec.limits: minItems"],
    );
    let one = |limit: &str| format!("{{{TARGET}, limits: [{limit}]}}");
    check(
        &one("{requests: 0}"),
        &[".spec.limits[0].requests: minimum"],
    );
    check(
        &one("{requests: 1, burst: 0}"),
        &[".spec.limits[0].burst: minimum"],
    );
    check(
        &one("{requests: 1, period: soon}"),
        &[".spec.limits[0].period: pattern"],
    );
    check(
        &one("{requests: 1, per: [{haeder: x}]}"),
        &[".spec.limits[0].per[0]: anyOf"],
    );
    check(
        &one("{requests: 1, rate: 5}"),
        &[".spec.limits[0].rate: unknown"],
    );
    check(
        "{targetRefs: [{kind: Pod, name: s}], limits: [{requests: 1}]}",
        &[".spec.targetRefs[0].kind: enum"],
    );
}

#[test]
fn the_manuals_examples_hold() {
    let blocks = MANUAL.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|block| Some(block.split_once("```")?.0));
    let blocks = blocks.filter(|block| block.contains("kind: RateLimitPolicy"));
    let examples: Vec<_> = blocks
        .flat_map(documents)
        .filter(|object| object["kind"] == "RateLimitPolicy")
        .collect();
    assert!(!examples.is_empty(), "no example");
    for object in examples {
        let mut known = object.clone();
        known["metadata"] = serde_json::json!({});
        assert_eq!(faults(&schema(), &known, ""), [""; 0]);
        assert!(decode(object, &mut Interner::default()).is_ok());
    }
}
