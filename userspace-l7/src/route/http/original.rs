//! A request as it was before its rule's filters, as the client's node tells the server's: policies are about what the
//! client asked for (Envoy's RBAC and JWT filters stand in front of its router). Nobody is believed for saying so: the
//! server's node looks whether a rule leads from there to what arrived.

use data_encoding::BASE64URL_NOPAD;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;

use super::{Filters, select};
use crate::model::{BackendTarget, HttpAction, HttpRouteTable, RequestHead};

/// Between two agents only: neither applications nor their clients get to see it.
const ORIGINAL: HeaderName = HeaderName::from_static("x-culvert-original");

/// Longest form that is written. What is longer is refused: it would be judged as something else.
const LONGEST: usize = 16 << 10;

/// What filters may have changed of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    target: PathAndQuery,
    authority: Option<HeaderValue>,
    /// Each name with its values in order, of which there may be none.
    headers: Vec<(HeaderName, Vec<HeaderValue>)>,
}

impl Original {
    /// What filters are about to change of a request; nothing if that is nothing.
    pub fn of(parts: &Parts, filters: &Filters<'_>) -> Option<Self> {
        if !filters.change_anything() {
            return None;
        }
        let mut names: Vec<&HeaderName> = filters.names().collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let values = |name| parts.headers.get_all(name).iter().cloned().collect();
        Some(Self {
            target: parts.uri.path_and_query()?.clone(),
            authority: parts.headers.get(HOST).cloned(),
            headers: names
                .into_iter()
                .map(|name| (name.clone(), values(name)))
                .collect(),
        })
    }

    /// Tells the next node; false if it is too long to be told: then the request must not go there, for it would be judged as
    /// something else.
    #[must_use]
    pub fn tell(&self, headers: &mut HeaderMap) -> bool {
        let text = BASE64URL_NOPAD.encode(&self.lines().join(&b'\n'));
        match HeaderValue::try_from(text) {
            Ok(value) if value.len() <= LONGEST => {
                drop(headers.insert(ORIGINAL, value));
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Takes out what a request says of this. What cannot be read is as good as nothing.
    pub fn take(headers: &mut HeaderMap) -> Option<Self> {
        let value = headers.remove(ORIGINAL)?;
        let lines = BASE64URL_NOPAD.decode(value.as_bytes()).ok()?;
        Self::parse(&lines)
    }

    /// Target, authority, then one line for each header's value: `name:value`, or the name alone where there is none.
    fn lines(&self) -> Vec<Vec<u8>> {
        let authority = self.authority.as_ref().map(HeaderValue::as_bytes);
        let mut lines = vec![
            self.target.as_str().as_bytes().to_vec(),
            authority.unwrap_or_default().to_vec(),
        ];
        for (name, values) in &self.headers {
            let name = name.as_str().as_bytes();
            if values.is_empty() {
                lines.push(name.to_vec());
            }
            let line = |value: &HeaderValue| [name, b":", value.as_bytes()].concat();
            lines.extend(values.iter().map(line));
        }
        lines
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let target = PathAndQuery::try_from(lines.next()?).ok()?;
        let authority = match lines.next()? {
            b"" => None,
            authority => Some(HeaderValue::from_bytes(authority).ok()?),
        };
        let mut headers: Vec<(HeaderName, Vec<HeaderValue>)> = Vec::new();
        for line in lines {
            let mut halves = line.splitn(2, |byte| *byte == b':');
            let name = HeaderName::from_bytes(halves.next()?).ok()?;
            let value = halves
                .next()
                .map(HeaderValue::from_bytes)
                .transpose()
                .ok()?;
            match headers.last_mut().filter(|(last, _)| *last == name) {
                Some((_, values)) => values.extend(value),
                None => headers.push((name, value.into_iter().collect())),
            }
        }
        Some(Self {
            target,
            authority,
            headers,
        })
    }

    /// The request as it was, if this is true of what arrived.
    pub fn before(&self, arrived: &Parts) -> Parts {
        let mut original = arrived.clone();
        original.uri = self.target.clone().into();
        drop(original.headers.remove(HOST));
        if let Some(authority) = &self.authority {
            drop(original.headers.insert(HOST, authority.clone()));
        }
        for (name, values) in &self.headers {
            drop(original.headers.remove(name));
            for value in values {
                let _more = original.headers.append(name, value.clone());
            }
        }
        original
    }

    /// The request as it was, and the filters that made of it what arrived: those of the rule that takes it, on a way to
    /// a backend or mirror that `serves`. Nothing if what arrived is something else.
    pub fn restore<'t>(
        &self,
        arrived: &Parts,
        table: &'t HttpRouteTable,
        serves: &dyn Fn(&BackendTarget) -> bool,
    ) -> Option<(Parts, Filters<'t>)> {
        let original = self.before(arrived);
        let entry =
            select(table, &RequestHead::of(&original)).filter(|entry| entry.rule.is_usable)?;
        let HttpAction::Forward(backends) = &entry.rule.action else {
            return None;
        };
        let filters = |backend, is_shadow| Filters {
            matched: &entry.matches,
            rule: &entry.rule,
            backend,
            is_shadow,
        };
        let forwarded = backends.iter().filter(|backend| serves(&backend.target));
        let forwarded = forwarded.map(|backend| filters(Some(&backend.request_headers), false));
        let mirrors = entry.rule.mirrors.iter();
        let copied = mirrors
            .filter(|mirror| serves(&mirror.target))
            .map(|mirror| filters(None, mirror.shadow_host));
        let mut ways = forwarded.chain(copied);
        let way = ways.find(|filters| self.leads_to(arrived, original.clone(), filters))?;
        Some((original, way))
    }

    /// Whether filters make of the request what arrived, as far as either of the two says what they change.
    fn leads_to(&self, arrived: &Parts, mut request: Parts, filters: &Filters<'_>) -> bool {
        if filters.apply(&mut request).is_err() {
            return false;
        }
        let is_same = |name: &HeaderName| {
            let (made, found) = (request.headers.get_all(name), arrived.headers.get_all(name));
            made.iter().eq(found.iter())
        };
        let told = self.headers.iter().map(|(name, _)| name);
        request.uri.path_and_query() == arrived.uri.path_and_query()
            && is_same(&HOST)
            && told.chain(filters.names()).all(is_same)
    }
}
