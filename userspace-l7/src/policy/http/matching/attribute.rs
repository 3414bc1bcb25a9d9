//! Conditions of `when`.

use http::HeaderName;
use http::header::HOST;

use super::{Doubt, Facts, field, match_request_principal, match_text};
use crate::model::{Attribute, AttributeMatch, AttributeValue, StringMatch};

impl Facts<'_> {
    /// What a request does not have holds for no value.
    pub(super) fn match_attribute(&self, one: &AttributeMatch) -> bool {
        if doubt_about(&one.attribute).is_some_and(|least| self.doubt >= least) {
            return false;
        }
        field(&one.values, &one.not_values, |value| {
            self.has(&one.attribute, value)
        })
    }

    /// Whether an attribute of the request has a value. A value of another kind is never its.
    fn has(&self, attribute: &Attribute, value: &AttributeValue) -> bool {
        match (attribute, value) {
            (Attribute::Header(name), AttributeValue::Text(wanted)) => {
                self.match_header(name, wanted)
            }
            (Attribute::Authority, AttributeValue::Text(wanted)) => {
                match_text(wanted, self.head.authority)
            }
            (Attribute::Method, AttributeValue::Text(wanted)) => {
                match_text(wanted, self.head.method.as_str())
            }
            (Attribute::Target, AttributeValue::Text(wanted)) => self.match_target(wanted),
            (Attribute::SourceIp, AttributeValue::Net(net)) => net.contains(&self.source),
            (Attribute::RemoteIp, AttributeValue::Net(net)) => net.contains(&self.remote),
            (Attribute::DestinationIp, AttributeValue::Net(net)) => net.contains(&self.destination),
            (Attribute::DestinationPort, AttributeValue::Port(port)) => *port == self.port,
            (Attribute::SourceNamespace, AttributeValue::Text(wanted)) => {
                self.match_namespace(wanted)
            }
            (Attribute::SourcePrincipal, AttributeValue::Text(wanted)) => {
                self.match_principal(wanted)
            }
            (Attribute::SourceServiceAccount, AttributeValue::ServiceAccount(wanted)) => {
                self.match_service_account(wanted)
            }
            (Attribute::SourceTrustDomain, AttributeValue::Text(wanted)) => {
                self.match_trust_domain(wanted)
            }
            (attribute, AttributeValue::Text(wanted)) => self.match_token(attribute, wanted),
            _ => false,
        }
    }

    fn match_header(&self, name: &HeaderName, wanted: &StringMatch) -> bool {
        // Envoy's present match: an empty value is there too.
        if *wanted == StringMatch::Presence {
            return self.head.headers.contains_key(name);
        }
        let value = self.head.header(name);
        value.is_some_and(|value| match_text(wanted, &value))
    }

    fn match_target(&self, wanted: &StringMatch) -> bool {
        match self.head.query {
            Some(query) => match_text(wanted, &format!("{}?{query}", self.path)),
            None => match_text(wanted, self.path),
        }
    }

    fn match_token(&self, attribute: &Attribute, wanted: &StringMatch) -> bool {
        let Some(token) = self.token else {
            return false;
        };
        let claim = |path: &[&str]| {
            token
                .values(path)
                .iter()
                .any(|text| match_text(wanted, text))
        };
        match attribute {
            Attribute::RequestPrincipal => match_request_principal(wanted, token),
            Attribute::RequestAudiences => claim(&["aud"]),
            Attribute::RequestPresenter => claim(&["azp"]),
            Attribute::RequestClaim(path) => {
                let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
                claim(&path)
            }
            _ => false,
        }
    }
}

/// The least doubt that makes an attribute doubtful, if any does.
fn doubt_about(attribute: &Attribute) -> Option<Doubt> {
    match attribute {
        Attribute::Header(name) if *name != HOST => Some(Doubt::Fields),
        Attribute::RemoteIp => Some(Doubt::Fields),
        Attribute::RequestPrincipal
        | Attribute::RequestAudiences
        | Attribute::RequestPresenter
        | Attribute::RequestClaim(_) => Some(Doubt::Token),
        _ => None,
    }
}
