//! What is said about bad input, sentence by sentence, and that nothing bad is ever used.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use super::file::Refusal;
use super::{Manifests, Update};
use crate::mesh::{Change, Kind};
use crate::sources::problem::Severity;

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("culvert-manifests-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), content).unwrap();
    }

    fn manifests(&self) -> Manifests {
        Manifests::new(&self.0)
    }

    /// Problems as sentences, paths without the directory.
    fn sentences(&self, update: &Update) -> Vec<String> {
        let prefix = format!("{}/", self.0.display());
        update
            .problems
            .list
            .iter()
            .map(|one| one.to_string().replace(&prefix, ""))
            .collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn scan(manifests: &mut Manifests) -> Option<Update> {
    manifests.scan(&BTreeSet::new())
}

/// What is said about one file called `a.yaml`.
#[track_caller]
fn says(content: impl AsRef<[u8]>, expected: &[&str]) {
    let directory = Directory::new();
    directory.write("a.yaml", content);
    let update = scan(&mut directory.manifests()).expect("news");
    assert_eq!(directory.sentences(&update), expected);
    let refused = update.problems.count(Severity::Error) > 0;
    assert_eq!(
        refused,
        update.changes.is_empty(),
        "a refused state changes nothing"
    );
}

/// What is said about the `spec` of an object, whose first line is line 5.
#[track_caller]
fn spec(version_kind: &str, spec: &str, expected: &str) {
    let (version, kind) = version_kind.rsplit_once('/').unwrap();
    let head = format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\nspec:\n"
    );
    let expected = format!(
        "a.yaml:{}",
        expected.replacen(": ", &format!(": {kind} n/x: "), 1)
    );
    says(format!("{head}{spec}"), &[&expected]);
}

const POLICY: &str = "security.istio.io/v1/AuthorizationPolicy";
const PEER: &str = "security.istio.io/v1/PeerAuthentication";
const ENTRY: &str = "networking.istio.io/v1/ServiceEntry";

#[test]
fn text_that_is_no_yaml() {
    says(
        "kind: Pod\n\tx: 1\n",
        &["a.yaml:2:1: a tab indents this line: YAML allows only spaces there"],
    );
    says(
        b"kind: \xff\xfe\n",
        &["a.yaml:1:1: is not UTF-8 text: save it as UTF-8, or remove it if it is no manifest"],
    );
    says(
        b"\x7fELF\x02\x01\x01\x00\x00",
        &[
            "a.yaml:1:1: has a control character that no text has: remove it, or the file if it is no manifest",
        ],
    );
    says(
        "a: 1\na: 2\n",
        &["a.yaml:2:1: `a` is here a second time, first on line 1: remove one"],
    );
    says(
        "a: !!int x\n\n  y\n",
        &[r"a.yaml:1:4: `x\ny` is not what its tag says: correct it or drop the tag"],
    );
    says(
        "just text\n",
        &["a.yaml:1:1: is not an object: write apiVersion, kind, metadata and spec"],
    );
}

#[test]
fn files_that_are_too_large_are_not_read() {
    says(
        "x".repeat(10 * 1024 * 1024),
        &["a.yaml: is larger than 8 MiB, the most that is read: split it"],
    );
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        let line = format!("a{level}: &a{level} [{items}]\n");
        bomb.push_str(&line);
    }
    says(
        bomb,
        &[
            "a.yaml:6:5: more than 2000000 values, aliases expanded: split the file or write less with aliases",
        ],
    );
}

#[test]
fn half_a_file() {
    says(
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, names",
        &[
            "a.yaml:4:1: the file ends in the middle of something (while parsing a flow mapping, did not find expected ',' or '}'): is it complete?",
        ],
    );
    says(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n",
        &["a.yaml:1:1: Service x: spec is missing: say at least which ports it has"],
    );
}

#[test]
fn objects_that_are_none() {
    says(
        "kind: Pod\n",
        &["a.yaml:1:1: Pod: apiVersion is missing: name the version, such as v1"],
    );
    says(
        "apiVersion: v1\n",
        &["a.yaml:1:1: kind is missing: name the kind, such as Pod"],
    );
    says(
        "apiVersion: v1\nkind: Namespace\n",
        &["a.yaml:1:1: Namespace: metadata.name is missing: every object has a name"],
    );
    says(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: A_b}\n",
        &[
            "a.yaml:3:12: Namespace A_b: metadata.name `A_b` is not a name: use lower-case letters, digits and `-`, first and last a letter or digit",
        ],
    );
    says(
        "apiVersion: security.istio.io/v9\nkind: PeerAuthentication\nmetadata: {name: x}\n",
        &[
            "a.yaml:1:1: PeerAuthentication x: apiVersion PeerAuthentication is not read in `security.istio.io/v9`: write security.istio.io/v1",
        ],
    );
    says(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolcy\nmetadata: {name: x}\n",
        &[
            "a.yaml:2:1: AuthorizationPolcy x: kind `AuthorizationPolcy` is not a kind of security.istio.io: it has AuthorizationPolicy, PeerAuthentication, RequestAuthentication",
        ],
    );
}

#[test]
fn wrong_types_and_unknown_fields() {
    spec(
        "v1/Service",
        "  ports: [{port: http}]\n",
        "5:12: spec.ports[0].port invalid type: string \"http\", expected i32",
    );
    spec(
        "v1/Service",
        "  porst: []\n",
        "5:3: spec.porst is not a field of this kind: correct its name or remove it",
    );
    spec(
        POLICY,
        "  action: REFUSE\n",
        "5:3: spec.action unknown variant `REFUSE`, expected one of `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`",
    );
    spec(
        POLICY,
        "  rules: [{form: []}]\n",
        "5:12: spec.rules[0].form is not a field of this kind: correct its name or remove it",
    );
    spec(
        ENTRY,
        "  hosts: [a.b]\n  ports: [{number: 80}]\n",
        "6:11: spec.ports[0] missing field `name`",
    );
    spec(
        PEER,
        "  mtls: STRICT\n",
        "5:3: spec.mtls invalid type: string \"STRICT\", expected struct Mtls",
    );
}

#[test]
fn bad_values_of_services() {
    spec(
        "v1/Service",
        "  ports: [{port: 70000}]\n",
        "5:12: spec.ports[0].port 70000 is not a port: use 1 to 65535",
    );
    spec(
        "v1/Service",
        "  ports: [{name: a}]\n",
        "5:11: spec.ports[0].port is missing: say which port clients use",
    );
    spec(
        "v1/Service",
        "  clusterIP: 10.0.0.256\n",
        "5:3: spec.clusterIP `10.0.0.256` is not an IP address: write one like 10.1.2.3 or 2001:db8::1",
    );
    // Whatever a value holds, its sentence is one line and leaves the terminal alone.
    spec(
        "v1/Service",
        "  clusterIP: \"a\\r\\n\\e[31m\"\n",
        r"5:3: spec.clusterIP `a\r\n\u{1b}[31m` is not an IP address: write one like 10.1.2.3 or 2001:db8::1",
    );
    spec(
        "v1/Service",
        "  type: ExternalName\n",
        "4:1: spec.externalName is missing: an ExternalName service stands for that DNS name",
    );
    spec(
        "v1/Service",
        "  selector: {app: a b}\n",
        "5:14: spec.selector.app `a b` is not a label value: use up to 63 letters, digits, `-`, `_` and `.`, first and last a letter or digit",
    );
    spec(
        "v1/Service",
        "  trafficDistribution: Near\n",
        "5:3: spec.trafficDistribution `Near` is not known: use PreferSameZone, PreferSameNode, PreferClose or Any",
    );
}

#[test]
fn bad_values_of_policies() {
    let source = |field: &str| format!("  rules: [{{from: [{{source: {{{field}}}}}]}}]\n");
    spec(
        POLICY,
        &source("ipBlocks: [10.0.0.0/33]"),
        "5:40: spec.rules[0].from[0].source.ipBlocks[0] `10.0.0.0/33` is not an address or CIDR range: write one like 10.1.0.0/16, 10.1.2.3 or 2001:db8::/64",
    );
    spec(
        POLICY,
        &source("principals: ['spiffe://a/ns/b/sa/c']"),
        "5:42: spec.rules[0].from[0].source.principals[0] `spiffe://a/ns/b/sa/c` would never match: leave the scheme out: <trust domain>/ns/<namespace>/sa/<service account>",
    );
    spec(
        POLICY,
        &source("principals: [A!/ns/b/sa/c]"),
        "5:42: spec.rules[0].from[0].source.principals[0] `A!/ns/b/sa/c` is not a SPIFFE ID: write <trust domain>/ns/<namespace>/sa/<service account>",
    );
    spec(
        POLICY,
        &source("trustDomains: [Td]"),
        "5:44: spec.rules[0].from[0].source.trustDomains[0] `Td` is not a trust domain: use lower-case letters, digits, `.`, `-` and `_`",
    );
    spec(
        POLICY,
        &source("serviceAccounts: ['a/*']"),
        "5:47: spec.rules[0].from[0].source.serviceAccounts[0] `a/*` is not a service account: write `account` or `namespace/account`, without wildcards",
    );
    spec(
        POLICY,
        &source("serviceAccounts: [a], namespaces: [b]"),
        "5:29: spec.rules[0].from[0].source.serviceAccounts cannot stand beside principals or namespaces: use one way to name the caller",
    );
    spec(
        POLICY,
        "  rules: [{to: [{operation: {ports: [http]}}]}]\n",
        "5:38: spec.rules[0].to[0].operation.ports[0] `http` is not a port: use a number from 1 to 65535",
    );
    spec(
        POLICY,
        "  rules: [{to: [{operation: {paths: ['/a/{x}']}}]}]\n",
        "5:38: spec.rules[0].to[0].operation.paths[0] `/a/{x}` is not a path pattern: braces stand only around a whole segment, as `{*}` or `{**}`",
    );
    spec(
        POLICY,
        "  rules: [{when: [{key: destination.user, values: [a]}]}]\n",
        "5:20: spec.rules[0].when[0].key `destination.user` is not a condition key: see the condition keys of Istio's AuthorizationPolicy, such as source.namespace",
    );
    spec(
        POLICY,
        "  rules: [{when: [{key: 'request.headers[:scheme]', values: [a]}]}]\n",
        "5:20: spec.rules[0].when[0].key `request.headers[:scheme]` names no header: write a header's name, `:authority`, `:method` or `:path`",
    );
    spec(
        POLICY,
        "  rules: [{when: [{key: source.ip}]}]\n",
        "5:19: spec.rules[0].when[0] says nothing: set values or notValues",
    );
    spec(
        POLICY,
        "  rules: [{from: [{}]}]\n",
        "5:19: spec.rules[0].from[0].source is missing: an entry of `from` says which source",
    );
}

#[test]
fn contradictions_of_policies() {
    spec(
        POLICY,
        "  selector: {matchLabels: {app: a}}\n  targetRefs: [{kind: Service, name: a}]\n",
        "6:3: spec.targetRefs a policy has a selector or targets, not both: remove one of them",
    );
    spec(
        POLICY,
        "  action: CUSTOM\n",
        "4:1: spec.provider is missing: action CUSTOM needs provider.name",
    );
    spec(
        POLICY,
        "  provider: {name: a}\n",
        "5:3: spec.provider belongs to action CUSTOM only: remove it",
    );
    spec(
        POLICY,
        "  selector: {matchLabels: {app: 'a*'}}\n",
        "5:28: spec.selector.matchLabels.app `app: a*`: selectors take no wildcards, write the exact label",
    );
    spec(
        POLICY,
        "  targetRefs: [{kind: Pod, name: a}]\n",
        "5:17: spec.targetRefs[0].kind a policy cannot target Pod.: use Service (group \"\"), ServiceEntry (group \"networking.istio.io\"), Gateway (group \"gateway.networking.k8s.io\"), GatewayClass (group \"gateway.networking.k8s.io\")",
    );
    spec(
        PEER,
        "  portLevelMtls: {8080: {mode: STRICT}}\n",
        "5:3: spec.portLevelMtls needs a selector: ports are those of particular workloads",
    );
    spec(
        PEER,
        "  selector: {matchLabels: {app: a}}\n  portLevelMtls: {http: {mode: STRICT}}\n",
        "6:19: spec.portLevelMtls.http `http` is not a port: use a number from 1 to 65535",
    );
}

#[test]
fn bad_values_of_entries() {
    spec(
        ENTRY,
        "  hosts: ['https://a.b']\n",
        "5:11: spec.hosts[0] `https://a.b` is not a host: write a DNS name, with `*.` in front at most",
    );
    spec(
        ENTRY,
        "  ports: []\n",
        "4:1: spec.hosts is missing: name at least one host",
    );
    spec(
        ENTRY,
        "  hosts: [a.b]\n  addresses: [10.0.0.0/64]\n",
        "6:15: spec.addresses[0] `10.0.0.0/64` is not an address or CIDR range: write one like 10.1.0.0/16, 10.1.2.3 or 2001:db8::/64",
    );
    spec(
        ENTRY,
        "  hosts: [a.b]\n  resolution: STATIC\n  endpoints: [{address: a.b}]\n",
        "7:16: spec.endpoints[0].address `a.b` is not an IP address: write one like 10.1.2.3 or 2001:db8::1",
    );
    spec(
        ENTRY,
        "  hosts: ['*.b']\n  resolution: DNS\n",
        "6:3: spec.resolution a wildcard host cannot be resolved: list endpoints or use resolution NONE",
    );
    spec(
        ENTRY,
        "  hosts: ['*.b', a.b]\n  resolution: DYNAMIC_DNS\n",
        "5:18: spec.hosts[1] `a.b`: resolution DYNAMIC_DNS is for wildcards: use DNS",
    );
    spec(
        ENTRY,
        "  hosts: ['*.b']\n  resolution: DYNAMIC_DNS\n  location: MESH_INTERNAL\n",
        "7:3: spec.location resolution DYNAMIC_DNS is for hosts outside the mesh: use MESH_EXTERNAL",
    );
    spec(
        ENTRY,
        "  hosts: ['*.b']\n  resolution: DYNAMIC_DNS\n  endpoints: [{address: a.b}]\n",
        "7:3: spec.endpoints resolution DYNAMIC_DNS has no endpoints, clients say which host they mean: remove this",
    );
    spec(
        ENTRY,
        "  hosts: [a.b]\n  exportTo: [other/x]\n",
        "6:14: spec.exportTo[0] `other/x`: use `*` for the mesh, `.` for its own namespace, or the name of one",
    );
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    says(
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec:\n  clusterIP: a\n  ports: [{port: 0}, {port: -1, name: b}]\n",
        &[
            "a.yaml:5:3: Service x: spec.clusterIP `a` is not an IP address: write one like 10.1.2.3 or 2001:db8::1",
            "a.yaml:6:12: Service x: spec.ports[0].port is missing: say which port clients use",
            "a.yaml:6:23: Service x: spec.ports[1].port -1 is not a port: use 1 to 65535",
        ],
    );
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n";
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";

#[test]
fn an_object_in_two_files_names_both() {
    let directory = Directory::new();
    directory.write("a.yaml", NAMESPACE);
    directory.write("b.yml", format!("# again\n---\n{NAMESPACE}"));
    let update = scan(&mut directory.manifests()).unwrap();
    let expected = "b.yml:3:1: Namespace x: is also declared at a.yaml:1:1: remove one of the two";
    assert_eq!(directory.sentences(&update), [expected]);
}

#[test]
fn what_is_not_used_is_kept_and_said() {
    says(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {anything: true}\n",
        &[
            "a.yaml:1:1: Deployment default/d: is kept, but not used: the mesh does not depend on it",
        ],
    );
    says(
        "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: d}\n",
        &[
            "a.yaml:1:1: Certificate default/d: is of an API group that the mesh does not know: it has no effect",
        ],
    );
}

#[test]
fn lists_are_their_items_and_empty_files_are_nothing() {
    let directory = Directory::new();
    directory.write("a.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: x}}\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n");
    directory.write(
        "b.yaml",
        "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: y}\n",
    );
    directory.write("c.yaml", "");
    directory.write("d.yaml", "# nothing\n---\n");
    directory.write(".hidden.yaml", "nonsense");
    directory.write("notes.txt", "nonsense");
    let mut manifests = directory.manifests();
    let update = scan(&mut manifests).unwrap();
    assert_eq!(directory.sentences(&update), Vec::<String>::new());
    assert_eq!(
        manifests.counts().into_iter().collect::<Vec<_>>(),
        [(Kind::Namespace, 2), (Kind::Node, 1)]
    );
}

#[test]
fn status_and_managed_fields_may_be_newer_than_we_are() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        format!(
            "{}status: {{brandNew: 1}}\n",
            NAMESPACE.replace("x}", "x, managedFields: [{brandNew: 1}]}")
        ),
    );
    let update = scan(&mut directory.manifests()).unwrap();
    assert_eq!(directory.sentences(&update), Vec::<String>::new());
}

#[test]
fn the_last_good_state_stays_until_the_whole_directory_is_good() {
    let directory = Directory::new();
    let mut manifests = directory.manifests();
    assert!(
        scan(&mut manifests).is_none(),
        "an empty directory is no news"
    );
    directory.write("a.yaml", NAMESPACE);
    assert_eq!(scan(&mut manifests).unwrap().changes.len(), 1);
    assert!(scan(&mut manifests).is_none());
    // One good change and one bad: neither counts.
    directory.write("b.yaml", SERVICE);
    directory.write("a.yaml", "kind: [");
    let update = scan(&mut manifests).unwrap();
    assert!(update.changes.is_empty() && update.problems.stale);
    assert_eq!(manifests.counts().len(), 1);
    directory.write("a.yaml", NAMESPACE);
    let update = scan(&mut manifests).unwrap();
    assert!(!update.problems.stale);
    assert!(
        matches!(&update.changes[..], [Change::Upsert(object)] if object.key().kind == Kind::Service)
    );
    fs::remove_file(directory.0.join("b.yaml")).unwrap();
    let update = scan(&mut manifests).unwrap();
    assert!(
        matches!(&update.changes[..], [Change::Remove(key)] if key.to_string() == "Service default/s")
    );
}

#[test]
fn links_and_strange_files_have_their_sentences() {
    let directory = Directory::new();
    std::os::unix::fs::symlink("loop.yaml", directory.0.join("loop.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", directory.0.join("dangling.yaml")).unwrap();
    fs::create_dir(directory.0.join("directory.yaml")).unwrap();
    nix::unistd::mkfifo(
        &directory.0.join("fifo.yaml"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let name = OsString::from_vec(b"\xff.yaml".to_vec());
    fs::write(directory.0.join(name), NAMESPACE).unwrap();
    let update = scan(&mut directory.manifests()).unwrap();
    assert_eq!(
        directory.sentences(&update),
        [
            "dangling.yaml: is a symbolic link to a file that is not there: remove or correct it",
            "directory.yaml: is not a regular file: give it another name or move it elsewhere",
            "fifo.yaml: is not a regular file: give it another name or move it elsewhere",
            "loop.yaml: is a symbolic link that leads back to itself: remove or correct it",
        ]
    );
}

#[test]
fn errors_of_the_system_have_their_sentences() {
    let of = |errno: Errno| Refusal::of(&std::io::Error::from(errno), false);
    assert_eq!(of(Errno::ENOENT), Refusal::Gone);
    assert_eq!(
        of(Errno::EACCES).to_string(),
        "cannot be read (permission denied): make it readable for the agent's user"
    );
    assert_eq!(
        of(Errno::EIO).to_string(),
        "cannot be read (Input/output error (os error 5)): check its disk"
    );
}

#[test]
fn a_directory_that_is_not_there_is_said_and_keeps_the_state() {
    let directory = Directory::new();
    directory.write("a.yaml", NAMESPACE);
    let mut manifests = directory.manifests();
    assert!(scan(&mut manifests).is_some());
    fs::remove_dir_all(&directory.0).unwrap();
    let update = scan(&mut manifests).unwrap();
    assert!(update.changes.is_empty() && update.problems.stale);
    let sentence = update.problems.list[0].to_string();
    assert!(sentence.ends_with("cannot be listed (No such file or directory (os error 2)): create the directory or name another one"), "{sentence}");
    assert_eq!(manifests.counts().len(), 1);
}
