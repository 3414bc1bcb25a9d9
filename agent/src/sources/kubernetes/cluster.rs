//! The state of a cluster, as far as it has been heard. Each object holds by itself: one that cannot be read keeps
//! its last good state, and a policy that never had one is closed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::collection::{Collection, Topic};
use super::condition::{ClusterCondition, KindCondition, Phase, Since};
use super::follow::News;
use super::held::{Held, Holdings, is_held};
use crate::mesh::{
    Change, FieldError, FieldPath, Interner, Kind, Object, ObjectKey, ObjectName, closed,
    decode_served, named_kinds, without_effect,
};
use crate::sources::mesh_config;
use crate::sources::problem::{OneLine, Place, Problem, Problems, Severity};
use crate::sources::update::{Input, Update};

/// Most problems of one object that are reported.
const MAX_PROBLEMS: usize = 20;

/// All objects of a cluster that the mesh depends on.
#[derive(Debug)]
pub struct Cluster {
    server: Arc<str>,
    kinds: BTreeMap<Kind, Stock>,
    /// `CustomResourceDefinition`s: only how they fare.
    definitions: Stock,
    /// Objects that others name, and what is in the way of each.
    named: BTreeMap<ObjectKey, Named>,
    /// What is different from what was handed on.
    changed: BTreeSet<ObjectKey>,
    texts: Interner,
    problems: Arc<Problems>,
    /// Whether problems may have changed.
    said: bool,
    /// Whether anything has been handed on.
    begun: bool,
    /// Lists and watches that failed since the start.
    refusals: u64,
    /// What the server holds besides, where somebody wants to know it, and whether there is news of that.
    holdings: Option<Holdings>,
    holds_news: bool,
}

/// One kind.
#[derive(Debug, Default)]
struct Stock {
    /// How people name it.
    resource: Arc<str>,
    objects: HashMap<ObjectName, Object>,
    /// What is wrong with those that have something.
    problems: BTreeMap<ObjectName, Vec<Problem>>,
    /// Names in the list that is coming in.
    listed: Option<HashSet<ObjectName>>,
    phase: Phase,
    trouble: Option<Since>,
}

/// One object that others name.
#[derive(Debug, Default)]
struct Named {
    /// Whether the list that is coming in has had it.
    is_listed: bool,
    trouble: Option<Since>,
}

impl Cluster {
    pub(super) fn new(server: Arc<str>, collections: &[Collection]) -> Self {
        let stock = |collection: &Collection| Stock {
            resource: collection.resource().into(),
            ..Stock::default()
        };
        let mut kinds = BTreeMap::new();
        let mut definitions = Stock::default();
        for collection in collections {
            match &collection.topic {
                Topic::Kind(kind) => {
                    let mut stock = stock(collection);
                    if matches!(kind, Kind::Other(..)) {
                        // Nothing depends on it, so nobody waits for it.
                        stock.phase = Phase::Following;
                    }
                    kinds.insert(kind.clone(), stock);
                }
                Topic::Definitions => definitions = stock(collection),
                Topic::Named(_) => {}
            }
        }
        for used in named_kinds() {
            // There may be none, so nobody waits for them.
            let following = Stock {
                resource: used.plural.into(),
                phase: Phase::Following,
                ..Stock::default()
            };
            kinds.insert(used.kind, following);
        }
        Self {
            server,
            kinds,
            definitions,
            named: BTreeMap::new(),
            changed: BTreeSet::new(),
            texts: Interner::default(),
            problems: Arc::default(),
            said: false,
            begun: false,
            refusals: 0,
            holdings: None,
            holds_news: false,
        }
    }

    /// One that keeps what the server holds of each object besides.
    pub(super) fn holding(server: Arc<str>, collections: &[Collection]) -> Self {
        Self {
            holdings: Some(Holdings::new()),
            ..Self::new(server, collections)
        }
    }

    /// What the server holds of each object besides; nothing where nobody wanted to know it.
    pub fn holdings(&self) -> &Holdings {
        static NOTHING: Holdings = Holdings::new();
        self.holdings.as_ref().unwrap_or(&NOTHING)
    }

    /// Whether the server has this kind.
    pub fn has_kind(&self, kind: &Kind) -> bool {
        let stock = self.kinds.get(kind);
        stock.is_some_and(|stock| stock.phase == Phase::Following)
    }

    /// Takes news of a kind.
    pub(super) fn take(&mut self, kind: &Kind, news: News, now: Timestamp) {
        self.refusals += u64::from(matches!(news, News::Failing(_)));
        let Some(stock) = self.kinds.get_mut(kind) else {
            return;
        };
        stock.note(&news, now);
        match news {
            News::Listing => stock.listed = Some(HashSet::new()),
            News::Listed(value) => {
                let name = self.put(kind, value);
                let stock = self.kinds.get_mut(kind);
                let listed = stock.and_then(|stock| stock.listed.as_mut());
                if let (Some(listed), Some(name)) = (listed, name) {
                    listed.insert(name);
                }
            }
            News::ListEnd => {
                let listed = stock.listed.take().unwrap_or_default();
                self.keep(kind, &listed);
            }
            News::Changed(value) => {
                self.put(kind, value);
            }
            News::Deleted(value) => {
                if let Some(name) = name_of(&value, &mut self.texts) {
                    self.remove(kind, &name);
                }
            }
            News::NotInstalled => self.keep(kind, &HashSet::new()),
            News::Following | News::Failing(_) => {}
        }
    }

    /// The objects that others name now.
    pub(super) fn names(&self) -> BTreeSet<ObjectKey> {
        let objects = self.kinds.values().flat_map(|stock| stock.objects.values());
        objects.flat_map(Object::names).collect()
    }

    /// Nobody names an object any more.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.named.remove(key);
        self.remove(&key.kind, &key.name);
        self.tell_named(&key.kind);
    }

    /// Takes news of an object that others name.
    pub(super) fn take_named(&mut self, key: &ObjectKey, news: News, now: Timestamp) {
        self.refusals += u64::from(matches!(news, News::Failing(_)));
        let named = self.named.entry(key.clone()).or_default();
        match news {
            News::Listing => named.is_listed = false,
            News::Listed(value) => {
                named.is_listed = true;
                self.put(&key.kind, value);
            }
            News::ListEnd if named.is_listed => {}
            News::ListEnd | News::Deleted(_) | News::NotInstalled => {
                self.remove(&key.kind, &key.name);
            }
            News::Changed(value) => {
                self.put(&key.kind, value);
            }
            News::Following => named.trouble = None,
            News::Failing(trouble) => {
                let since = named.trouble.take();
                let since = since.filter(|known| known.trouble.cause == trouble.cause);
                named.trouble = Some(Since {
                    since: since.map_or(now, |known| known.since),
                    trouble,
                });
            }
        }
        self.tell_named(&key.kind);
    }

    /// What is in the way of any object is in the way of its kind.
    fn tell_named(&mut self, kind: &Kind) {
        let mut of_kind = self.named.iter().filter(|(key, _)| key.kind == *kind);
        let trouble = of_kind.find_map(|(_, named)| named.trouble.clone());
        if let Some(stock) = self.kinds.get_mut(kind) {
            stock.trouble = trouble;
        }
    }

    /// Takes news of the definitions of custom kinds.
    pub(super) fn take_definitions(&mut self, news: &News, now: Timestamp) {
        self.refusals += u64::from(matches!(news, News::Failing(_)));
        self.definitions.note(news, now);
    }

    /// What is new since the last time; nothing before every kind has been listed.
    pub(super) fn update(&mut self) -> Option<Update> {
        let whole = self
            .kinds
            .values()
            .all(|stock| stock.phase != Phase::Waiting);
        let news = !self.begun || self.said || self.holds_news || !self.changed.is_empty();
        if !whole || !news {
            return None;
        }
        self.begun = true;
        self.holds_news = false;
        if std::mem::take(&mut self.said) {
            let all = self
                .kinds
                .values()
                .flat_map(|stock| stock.problems.values());
            self.problems = Arc::new(Problems::new(all.flatten().cloned().collect()));
        }
        let (mut changes, mut upserts) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.changed) {
            match self.object(&key) {
                Some(object) => upserts.push(Change::Upsert(object.clone())),
                None => changes.push(Change::Remove(key)),
            }
        }
        changes.append(&mut upserts);
        Some(Update {
            changes,
            problems: Arc::clone(&self.problems),
            noticed: None,
        })
    }

    /// How it fares.
    pub(super) fn condition(&self) -> ClusterCondition {
        let kinds = self.kinds.iter();
        let mut kinds: Vec<KindCondition> = kinds
            .map(|(kind, stock)| stock.condition(&kind.to_string()))
            .collect();
        // What it says when all is well is nobody's business.
        if self.definitions.trouble.is_some() || self.definitions.phase == Phase::Waiting {
            kinds.push(self.definitions.condition("CustomResourceDefinition"));
        }
        ClusterCondition {
            server: Arc::clone(&self.server),
            kinds,
            refusals: self.refusals,
        }
    }

    fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.kinds.get(&key.kind)?.objects.get(&key.name)
    }

    /// Reads an object and takes it over, or says why not.
    fn put(&mut self, kind: &Kind, mut value: Value) -> Option<ObjectName> {
        let name = name_of(&value, &mut self.texts)?;
        let key = ObjectKey {
            kind: kind.clone(),
            name: name.clone(),
        };
        self.hold(&key, &value);
        let expanded = mesh_config::expand(&mut value);
        let read = expanded
            .map_err(|(path, problem)| vec![FieldError { path, problem }])
            .and_then(|()| {
                // Decoding consumes the value, and what cannot be read is rare: only policies are read again.
                let again = closed_kind(kind).then(|| value.clone());
                decode_served(kind, value, &mut self.texts).inspect_err(|_faults| {
                    if let Some(value) = again {
                        self.close(&key, &value);
                    }
                })
            });
        let problem = |severity, fault: FieldError| Problem {
            severity,
            place: place(&self.server),
            object: key.to_string().into(),
            field: OneLine::from(fault.path.to_string()),
            message: fault.problem.into(),
        };
        let (object, mut problems): (Option<Object>, Vec<Problem>) = match read {
            Ok(decoded) => {
                let idle = without_effect(kind).map(|message| FieldError {
                    path: FieldPath::default(),
                    problem: message.to_owned(),
                });
                let remarks = decoded.remarks.into_iter().chain(idle);
                let remarks = remarks.map(|remark| problem(Severity::Warning, remark));
                (Some(decoded.object), remarks.collect())
            }
            Err(faults) => {
                let faults = faults.into_iter();
                (
                    None,
                    faults
                        .map(|fault| problem(Severity::Error, fault))
                        .collect(),
                )
            }
        };
        problems.truncate(MAX_PROBLEMS);
        if object.as_ref().is_some_and(|object| object.key() != key) {
            // A ConfigMap that holds no mesh configuration, or none any more.
            self.remove(kind, &name);
            return Some(name);
        }
        let stock = self.kinds.get_mut(kind)?;
        let before = if problems.is_empty() {
            stock.problems.remove(&name)
        } else {
            stock.problems.insert(name.clone(), problems)
        };
        self.said |= before.is_some() || stock.problems.contains_key(&name);
        if let Some(object) = object
            && stock.objects.get(&name) != Some(&object)
        {
            stock.objects.insert(name.clone(), object);
            self.changed.insert(key);
        }
        Some(name)
    }

    /// Keeps what the server holds of an object.
    fn hold(&mut self, key: &ObjectKey, value: &Value) {
        let Some(holdings) = &mut self.holdings else {
            return;
        };
        if let Some(held) = Held::of(value).filter(|_| is_held(&key.kind))
            && holdings.get(key) != Some(&held)
        {
            holdings.insert(key.clone(), held);
            self.holds_news = true;
        }
    }

    /// Puts the strictest policy in place of one that cannot be read and never could.
    fn close(&mut self, key: &ObjectKey, value: &Value) {
        let substitute = closed(&key.kind, value, &mut self.texts);
        let stock = self.kinds.get_mut(&key.kind);
        if let (Some(stock), Some(object)) = (stock, substitute)
            && !stock.objects.contains_key(&key.name)
        {
            stock.objects.insert(key.name.clone(), object);
            self.changed.insert(key.clone());
        }
    }

    fn remove(&mut self, kind: &Kind, name: &ObjectName) {
        let Some(stock) = self.kinds.get_mut(kind) else {
            return;
        };
        self.said |= stock.problems.remove(name).is_some();
        let key = ObjectKey {
            kind: kind.clone(),
            name: name.clone(),
        };
        if let Some(holdings) = &mut self.holdings {
            self.holds_news |= holdings.remove(&key).is_some();
        }
        if stock.objects.remove(name).is_some() {
            self.changed.insert(key);
        }
    }

    /// Removes every object of a kind but these.
    fn keep(&mut self, kind: &Kind, kept: &HashSet<ObjectName>) {
        let Some(stock) = self.kinds.get(kind) else {
            return;
        };
        let known = stock.objects.keys().chain(stock.problems.keys());
        let gone: Vec<ObjectName> = known
            .filter(|name| !kept.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(kind, &name);
        }
    }
}

impl Input for Cluster {
    fn place(&self, object: &ObjectKey) -> Option<Place> {
        self.object(object).map(|_| place(&self.server))
    }

    fn own_problems(&self) -> &Problems {
        &self.problems
    }
}

impl Stock {
    /// Notes what news say of how the kind fares.
    fn note(&mut self, news: &News, now: Timestamp) {
        match news {
            News::Failing(trouble) => {
                let since = self
                    .trouble
                    .take()
                    .filter(|known| known.trouble.cause == trouble.cause);
                self.trouble = Some(Since {
                    since: since.map_or(now, |known| known.since),
                    trouble: trouble.clone(),
                });
            }
            News::Following => self.trouble = None,
            News::ListEnd => self.phase = Phase::Following,
            News::NotInstalled => {
                self.phase = Phase::NotInstalled;
                self.trouble = None;
            }
            News::Listing | News::Listed(_) | News::Changed(_) | News::Deleted(_) => {}
        }
    }

    fn condition(&self, kind: &str) -> KindCondition {
        KindCondition {
            kind: kind.into(),
            resource: Arc::clone(&self.resource),
            objects: self.objects.len(),
            phase: self.phase,
            trouble: self.trouble.clone(),
        }
    }
}

fn place(server: &Arc<str>) -> Place {
    Place {
        file: Arc::clone(server),
        position: None,
    }
}

fn name_of(value: &Value, texts: &mut Interner) -> Option<ObjectName> {
    let metadata = value.get("metadata")?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    Some(ObjectName {
        namespace: texts.intern(text("namespace").unwrap_or_default()),
        name: texts.intern(text("name")?),
    })
}

/// Whether a policy of this kind closes what it is about when it cannot be read.
fn closed_kind(kind: &Kind) -> bool {
    matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication)
}
