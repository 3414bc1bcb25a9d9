//! What a validated token says, for policies and for the application.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::token::Token;
use crate::model::JwtRule;

/// Claims that are lists in one text, whatever the rule says (Istio).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// The claims of a token whose signature, issuer, time and audience were checked.
#[derive(Clone, Debug)]
pub struct Claims {
    pub(super) all: Arc<Map<String, Value>>,
    /// As it came: base64url.
    pub(super) payload: Arc<str>,
    /// The rule that the token satisfied.
    pub(super) rule: Arc<JwtRule>,
}

impl Claims {
    pub(super) fn new(token: Token, rule: &Arc<JwtRule>) -> Self {
        Self {
            payload: token.payload().into(),
            all: Arc::new(token.claims),
            rule: Arc::clone(rule),
        }
    }

    #[cfg(test)]
    pub(in crate::policy) fn for_test(all: Map<String, Value>) -> Self {
        Self {
            all: Arc::new(all),
            payload: "".into(),
            rule: Arc::new(JwtRule {
                origin: "app/jwt".into(),
                issuer: "".into(),
                audiences: vec![],
                keys: crate::model::JwtKeys::Inline("".into()),
                locations: vec![],
                forward_original: false,
                payload_header: None,
                claim_headers: vec![],
                space_delimited_claims: vec![],
            }),
        }
    }

    /// `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.all.get("iss")?.as_str()
    }

    /// `sub`, if the token has one.
    pub fn subject(&self) -> Option<&str> {
        self.all.get("sub")?.as_str()
    }

    /// `<iss>/<sub>`: what policies call the request's principal.
    pub fn principal(&self) -> Option<String> {
        Some(format!("{}/{}", self.issuer()?, self.subject()?))
    }

    /// The texts of a claim, found by its way through nested objects: one text, each of a list, or each word
    /// of a claim that is a list in one text. Anything else is no text.
    pub fn values(&self, path: &[&str]) -> Vec<&str> {
        let Some(value) = self.find(path) else {
            return Vec::new();
        };
        match value {
            Value::String(text) if self.is_space_delimited(path) => {
                text.split(' ').filter(|word| !word.is_empty()).collect()
            }
            Value::String(text) => vec![text],
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn find(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let start = self.all.get(*first)?;
        rest.iter().try_fold(start, |value, name| value.get(*name))
    }

    fn is_space_delimited(&self, path: &[&str]) -> bool {
        let [name] = path else {
            return false;
        };
        SPACE_DELIMITED.contains(name)
            || self
                .rule
                .space_delimited_claims
                .iter()
                .any(|claim| **claim == **name)
    }
}
