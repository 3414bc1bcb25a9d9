//! What the routes of Gateway API have in common: parents, backends, header filters.

use serde::Deserialize;
use serde_json::Value;

use super::field::{Faults, FieldPath};
use super::syntax::read_port;

/// Gateway API's limit on `parentRefs`.
pub(crate) const MAX_PARENTS: usize = 32;
/// Its limit on most other lists.
pub(crate) const MAX_ITEMS: usize = 16;
/// Its limit on a weight.
const MAX_WEIGHT: i64 = 1_000_000;
/// The kind of a backend that says nothing.
const SERVICE: &str = "Service";

/// `parentRefs[]`: what a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// API group; a Gateway's if it says nothing.
    pub group: Option<String>,
    /// Kind; Gateway if it says nothing.
    pub kind: Option<String>,
    /// Namespace; the route's own if it says nothing.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// A listener; means nothing for a mesh.
    pub section_name: Option<String>,
    /// Only this port.
    pub port: Option<i64>,
}

/// What a parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ParentKind {
    /// A Service.
    Service,
    /// A ServiceEntry.
    ServiceEntry,
    /// A Gateway: no business of the mesh.
    Gateway,
}

impl ParentReference {
    /// What it is, if it is anything known.
    pub(crate) fn target(&self) -> Option<ParentKind> {
        let group = self.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        match (group, self.kind.as_deref().unwrap_or("Gateway")) {
            ("" | "core", "Service") => Some(ParentKind::Service),
            ("networking.istio.io", "ServiceEntry") => Some(ParentKind::ServiceEntry),
            ("gateway.networking.k8s.io", "Gateway") => Some(ParentKind::Gateway),
            _ => None,
        }
    }

    /// The port, which was checked.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port.and_then(|port| u16::try_from(port).ok())
    }
}

/// Checks `parentRefs`.
pub(crate) fn check_parents(parents: &[ParentReference], place: &FieldPath, faults: &mut Faults) {
    check_length(parents.len(), MAX_PARENTS, place, faults);
    for (index, parent) in parents.iter().enumerate() {
        let place = place.join(index);
        if parent.name.is_empty() {
            faults.add(place.join("name"), "is missing: name the parent");
        }
        if let Some(port) = parent.port {
            let _checked = read_port(port, place.join("port"), faults);
        }
    }
}

/// Says so if a list is too long.
pub(crate) fn check_length(length: usize, most: usize, place: &FieldPath, faults: &mut Faults) {
    if length > most {
        let problem = format!("has {length} entries: at most {most} are allowed");
        faults.add(place.clone(), problem);
    }
}

/// `backendRef`: where a request may go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BackendReference {
    /// API group; core if it says nothing.
    #[serde(default)]
    pub group: String,
    /// Kind; Service if it says nothing.
    pub kind: Option<String>,
    /// Namespace; the route's own if it says nothing.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port.
    pub port: Option<i64>,
    /// Share; 1 if it says nothing.
    pub weight: Option<i64>,
}

/// A backend as its reference names it, whatever else stands there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend<'r> {
    pub(crate) group: &'r str,
    pub(crate) kind: &'r str,
    pub(crate) namespace: Option<&'r str>,
    pub(crate) name: &'r str,
    pub(crate) port: Option<i64>,
    weight: Option<i64>,
}

impl BackendReference {
    pub(crate) fn backend(&self) -> Backend<'_> {
        Backend {
            group: &self.group,
            kind: self.kind.as_deref().unwrap_or(SERVICE),
            namespace: self.namespace.as_deref(),
            name: &self.name,
            port: self.port,
            weight: self.weight,
        }
    }
}

impl Backend<'_> {
    /// The share, which was checked.
    pub(crate) fn weight(self) -> u32 {
        let weight = self.weight.map(u32::try_from);
        weight.map_or(1, Result::unwrap_or_default)
    }

    pub(crate) fn check(self, place: &FieldPath, faults: &mut Faults) {
        if self.name.is_empty() {
            faults.add(place.join("name"), "is missing: name the backend");
        }
        if let Some(port) = self.port {
            let _checked = read_port(port, place.join("port"), faults);
        }
        if let Some(weight) = self
            .weight
            .filter(|weight| !(0..=MAX_WEIGHT).contains(weight))
        {
            let problem = format!("{weight} is not a weight: use 0 to {MAX_WEIGHT}");
            faults.add(place.join("weight"), problem);
        }
    }
}

/// A backend with filters of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    from = "Written<F>",
    bound(deserialize = "F: serde::de::DeserializeOwned")
)]
pub struct FilteredBackend<F> {
    /// Where requests go.
    pub reference: BackendReference,
    /// What is done on this way.
    pub filters: Vec<F>,
}

/// A [`FilteredBackend`] as it is written: all in one. (serde's `flatten` would not tell which fields are unknown.)
#[derive(Deserialize)]
#[serde(bound = "F: serde::de::DeserializeOwned")]
struct Written<F> {
    #[serde(default)]
    group: String,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    weight: Option<i64>,
    #[serde(default = "Vec::new")]
    filters: Vec<F>,
}

impl<F> From<Written<F>> for FilteredBackend<F> {
    fn from(written: Written<F>) -> Self {
        Self {
            reference: BackendReference {
                group: written.group,
                kind: written.kind,
                namespace: written.namespace,
                name: written.name,
                port: written.port,
                weight: written.weight,
            },
            filters: written.filters,
        }
    }
}

impl<F> FilteredBackend<F> {
    /// The backend without its filters.
    pub(crate) fn backend(&self) -> Backend<'_> {
        self.reference.backend()
    }
}

/// `requestHeaderModifier` and `responseHeaderModifier`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct HeaderFilter {
    /// In place of what is there.
    pub set: Vec<Header>,
    /// Besides what is there.
    pub add: Vec<Header>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

impl HeaderFilter {
    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let mut seen = std::collections::BTreeSet::new();
        for (list, headers) in [("set", &self.set), ("add", &self.add)] {
            check_length(headers.len(), MAX_ITEMS, &place.join(list), faults);
            for (index, header) in headers.iter().enumerate() {
                let place = place.join(list).join(index);
                check_header_name(&header.name, place.join("name"), faults);
                if http::HeaderValue::from_str(&header.value).is_err() {
                    let rule = "use printable characters without line breaks";
                    faults.add(
                        place.join("value"),
                        format!("is not a header value: {rule}"),
                    );
                }
                check_twice(&mut seen, &header.name, place.join("name"), faults);
            }
        }
        check_length(self.remove.len(), MAX_ITEMS, &place.join("remove"), faults);
        for (index, name) in self.remove.iter().enumerate() {
            let place = place.join("remove").join(index);
            check_header_name(name, place.clone(), faults);
            check_twice(&mut seen, name, place, faults);
        }
    }
}

/// Gateway API: what happens to a name that stands in two lists is not defined, so it may not.
fn check_twice(
    seen: &mut std::collections::BTreeSet<String>,
    name: &str,
    place: FieldPath,
    faults: &mut Faults,
) {
    if !seen.insert(name.to_ascii_lowercase()) {
        faults.add(place, format!("`{name}` is here a second time: keep one"));
    }
}

/// Checks a header's name. `:authority` may be set, as Istio has it.
pub(crate) fn check_header_name(name: &str, place: FieldPath, faults: &mut Faults) {
    if name != ":authority" && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        let rule = "use letters, digits and `-`";
        faults.add(place, format!("`{name}` is not a header name: {rule}"));
    }
}

/// Checks a regular expression.
pub(crate) fn check_regex(pattern: &str, place: FieldPath, faults: &mut Faults) {
    if let Err(error) = userspace_l7::model::FullRegex::new(pattern) {
        // The error draws the place over several lines; its last line says what it is.
        let text = error.to_string();
        let why = text.lines().last().unwrap_or_default().trim();
        let why = why.strip_prefix("error: ").unwrap_or(why);
        let problem = format!(
            "`{}` is not a regular expression in RE2's syntax ({why}): correct it",
            pattern.escape_debug()
        );
        faults.add(place, problem);
    }
}

/// `requestMirror`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorFilter {
    /// For whom.
    pub backend_ref: BackendReference,
    /// Of a hundred requests, how many.
    pub percent: Option<i64>,
    /// Which part of the requests.
    pub fraction: Option<Fraction>,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Fraction {
    /// How many.
    pub numerator: i64,
    /// Of how many; 100 if it says nothing.
    pub denominator: Option<i64>,
}

/// All of a million.
const MILLION: i64 = 1_000_000;

impl MirrorFilter {
    /// How many of a million requests are copied.
    pub(crate) fn per_million(&self) -> u32 {
        let share = match (self.percent, self.fraction) {
            (Some(percent), _) => percent.saturating_mul(MILLION / 100),
            (None, Some(fraction)) => {
                let whole = fraction.denominator.unwrap_or(100).max(1);
                fraction.numerator.saturating_mul(MILLION) / whole
            }
            (None, None) => MILLION,
        };
        u32::try_from(share.clamp(0, MILLION)).unwrap_or_default()
    }

    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        self.backend_ref
            .backend()
            .check(&place.join("backendRef"), faults);
        if self.percent.is_some() && self.fraction.is_some() {
            let rule = "percent and fraction say the same: keep one";
            faults.add(place.join("fraction"), rule);
        }
        if let Some(percent) = self.percent.filter(|one| !(0..=100).contains(one)) {
            let problem = format!("{percent} is not a percentage: use 0 to 100");
            faults.add(place.join("percent"), problem);
        }
        if let Some(fraction) = self.fraction {
            let whole = fraction.denominator.unwrap_or(100);
            if whole < 1 || !(0..=whole).contains(&fraction.numerator) {
                let rule = "the numerator is from 0 to the denominator, which is above 0";
                faults.add(place.join("fraction"), rule);
            }
        }
    }
}

/// `sessionPersistence`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// Name of the cookie or header.
    pub session_name: Option<String>,
    /// Longest life.
    pub absolute_timeout: Option<super::duration::GatewayDuration>,
    /// Longest pause.
    pub idle_timeout: Option<super::duration::GatewayDuration>,
    /// Cookie or Header.
    #[serde(rename = "type", default)]
    pub carrier: SessionType,
    /// Only for cookies.
    pub cookie_config: Option<CookieConfig>,
}

/// `sessionPersistence.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "Gateway API's own words")]
pub enum SessionType {
    #[default]
    Cookie,
    Header,
}

/// `sessionPersistence.cookieConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CookieConfig {
    /// How long the browser keeps it.
    #[serde(default)]
    pub lifetime_type: CookieLifetime,
}

/// `sessionPersistence.cookieConfig.lifetimeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "Gateway API's own words")]
pub enum CookieLifetime {
    #[default]
    Session,
    Permanent,
}

impl SessionPersistence {
    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let lifetime = self.cookie_config.map(|config| config.lifetime_type);
        if lifetime == Some(CookieLifetime::Permanent) && self.absolute_timeout.is_none() {
            let rule = "is missing: a permanent cookie says how long it lives";
            faults.add(place.join("absoluteTimeout"), rule);
        }
        if let Some(name) = &self.session_name
            && http::HeaderName::from_bytes(name.as_bytes()).is_err()
        {
            let rule = "use letters, digits and `-`";
            faults.add(
                place.join("sessionName"),
                format!("`{name}` is not the name of a cookie or header: {rule}"),
            );
        }
    }
}

/// A reference to an object of somebody else's kind: read, but of no use here.
pub type ForeignReference = Value;
