//! JSON of an API server → values, without the branches that no part of the mesh reads: three quarters of a Pod
//! never become objects in memory.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

/// A field that is left out, or, if fields of it are named, those.
struct Cut(&'static str, &'static [Self]);

const fn whole(field: &'static str) -> Cut {
    Cut(field, &[])
}

/// By the whole path from the object's root; lists are passed through. No custom kind that is followed has any of
/// these fields under `spec`.
const CUTS: &[Cut] = &[
    Cut(
        "metadata",
        &[
            whole("managedFields"),
            Cut(
                "annotations",
                &[whole("kubectl.kubernetes.io/last-applied-configuration")],
            ),
        ],
    ),
    Cut(
        "spec",
        &[
            whole("affinity"),
            whole("ephemeralContainers"),
            whole("imagePullSecrets"),
            whole("initContainers"),
            whole("securityContext"),
            whole("tolerations"),
            whole("topologySpreadConstraints"),
            whole("volumes"),
            Cut(
                "containers",
                &[
                    whole("args"),
                    whole("command"),
                    whole("env"),
                    whole("envFrom"),
                    whole("image"),
                    whole("lifecycle"),
                    whole("livenessProbe"),
                    whole("readinessProbe"),
                    whole("resources"),
                    whole("securityContext"),
                    whole("startupProbe"),
                    whole("volumeMounts"),
                ],
            ),
        ],
    ),
    Cut(
        "status",
        &[
            whole("containerStatuses"),
            whole("ephemeralContainerStatuses"),
            whole("initContainerStatuses"),
        ],
    ),
];

/// An object of an API server, trimmed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trimmed(pub(super) Value);

impl<'de> Deserialize<'de> for Trimmed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Branch(CUTS).deserialize(deserializer).map(Self)
    }
}

/// A value, of which some fields are left out.
#[derive(Clone, Copy)]
struct Branch(&'static [Cut]);

impl<'de> DeserializeSeed<'de> for Branch {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.is_empty() {
            return Value::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Branch {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.0.iter().find(|cut| cut.0 == key) {
                Some(Cut(_, [])) => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(Cut(_, below)) => {
                    kept.insert(key, map.next_value_seed(Self(below))?);
                }
                None => {
                    kept.insert(key, map.next_value()?);
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut kept = Vec::with_capacity(list.size_hint().unwrap_or_default());
        while let Some(element) = list.next_element_seed(self)? {
            kept.push(element);
        }
        Ok(Value::Array(kept))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Trimmed;

    #[test]
    fn what_the_mesh_never_reads_is_left_out() {
        let pod = json!({
            "metadata": {
                "name": "x",
                "managedFields": [{ "manager": "kubelet" }],
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                    "culvert.dev/netns": "/run/netns/x",
                },
            },
            "spec": {
                "nodeName": "a",
                "volumes": [{ "name": "v" }],
                "containers": [{ "name": "c", "env": [], "ports": [{ "containerPort": 80 }] }, null],
            },
            "status": { "podIP": "10.0.0.1", "containerStatuses": [{}] },
        });
        let Trimmed(kept) = serde_json::from_value(pod).unwrap();
        let expected = json!({
            "metadata": { "name": "x", "annotations": { "culvert.dev/netns": "/run/netns/x" } },
            "spec": {
                "nodeName": "a",
                "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }] }, null],
            },
            "status": { "podIP": "10.0.0.1" },
        });
        assert_eq!(kept, expected);
    }

    #[test]
    fn fields_of_the_same_name_elsewhere_stay() {
        let policy =
            json!({ "spec": { "rules": [{ "env": 1, "volumes": 2.5, "command": [true, -1] }] } });
        let Trimmed(kept) = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(kept, policy);
    }
}
