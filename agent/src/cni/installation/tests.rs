//! Directories of runtimes, before, with and after us.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::Installation;

const LIST: &str = "{\n  \"name\": \"n\",\n  \"plugins\": [\n    {\"type\": \"ptp\"}\n  ]\n}\n";
const SINGLE: &str = "{ \"cniVersion\": \"0.3.1\", \"name\": \"n\", \"type\": \"bridge\" }\n";

/// A node's directories; they go with the value.
struct Node {
    root: PathBuf,
    installation: Installation,
}

impl Node {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("culvert-cni-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        let (conf_dir, bin_dir) = (root.join("net.d"), root.join("bin"));
        fs::create_dir_all(&conf_dir).unwrap();
        fs::create_dir_all(&bin_dir).unwrap();
        fs::write(bin_dir.join("ptp"), "").unwrap();
        // As distributions have it; in a container it leads nowhere.
        std::os::unix::fs::symlink("/not-there/cni", bin_dir.join("bridge")).unwrap();
        for (name, text) in files {
            fs::write(conf_dir.join(name), text).unwrap();
        }
        Self {
            installation: Installation {
                conf_dir,
                bin_dir,
                socket: "/run/culvert/cni.sock".into(),
                start_without_agent: BTreeSet::from(["kube-system".to_owned()]),
            },
            root,
        }
    }

    fn read(&self) -> BTreeMap<String, String> {
        let read = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            entries
                .map(|entry| {
                    let entry = entry.unwrap();
                    let text = fs::read(entry.path()).unwrap_or_default();
                    let name = entry.file_name().into_string().unwrap();
                    (name, String::from_utf8_lossy(&text).into_owned())
                })
                .collect::<BTreeMap<_, _>>()
        };
        let mut all = read(&self.installation.conf_dir);
        let programs = read(&self.installation.bin_dir);
        all.extend(
            programs
                .into_keys()
                .map(|name| (name, "a program".to_owned())),
        );
        all
    }

    /// Whether a file has our entry.
    fn has(&self, name: &str) -> bool {
        self.read()
            .get(name)
            .is_some_and(|text| text.contains("culvert-cni"))
    }

    /// Installs, twice, and uninstalls, twice: no trace is left.
    fn comes_and_goes(&self, check: impl Fn(&Self)) {
        let before = self.read();
        assert!(!self.installation.install().unwrap().is_empty());
        check(self);
        let with = self.read();
        assert!(
            self.installation.install().unwrap().is_empty(),
            "once is enough"
        );
        assert_eq!(self.read(), with);
        assert!(!self.installation.uninstall().unwrap().is_empty());
        assert_eq!(self.read(), before);
        assert!(
            self.installation.uninstall().unwrap().is_empty(),
            "once is enough"
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.root));
    }
}

#[test]
fn the_first_configuration_is_the_one_that_is_used() {
    let files = [
        ("10-first.conflist", LIST),
        ("20-second.conflist", LIST),
        ("05-readme", "hello"),
    ];
    Node::new("first", &files).comes_and_goes(|node| {
        assert!(node.has("10-first.conflist") && !node.has("20-second.conflist"));
        let text = &node.read()["10-first.conflist"];
        assert!(
            text.contains(r#""startWithoutAgent":["kube-system"]"#),
            "{text}"
        );
    });
    let broken = [("00-broken.conflist", "{"), ("10-first.conflist", LIST)];
    Node::new("broken", &broken).comes_and_goes(|node| assert!(node.has("10-first.conflist")));
}

#[test]
fn a_single_plugin_is_kept_until_we_go() {
    Node::new("single", &[("10-bridge.conf", SINGLE)]).comes_and_goes(|node| {
        assert!(node.has("10-bridge.conflist"));
        let files = node.read();
        assert!(!files.contains_key("10-bridge.conf"), "{files:?}");
        assert_eq!(files["10-bridge.conf.before-culvert"], SINGLE);
    });
}

#[test]
fn what_others_do_is_repaired_and_no_more() {
    let node = Node::new("repair", &[("10-first.conflist", LIST)]);
    node.installation.install().unwrap();
    // Its agent writes it anew.
    let path = node.installation.conf_dir.join("10-first.conflist");
    fs::write(&path, LIST).unwrap();
    assert_eq!(node.installation.repair().unwrap(), [path]);
    // Another network takes over.
    let other = node.installation.conf_dir.join("00-other.conflist");
    fs::write(other, LIST).unwrap();
    assert_eq!(node.installation.repair().unwrap().len(), 2);
    assert!(node.has("00-other.conflist") && !node.has("10-first.conflist"));
    assert!(node.installation.repair().unwrap().is_empty());
}

#[test]
fn a_network_whose_plugins_are_elsewhere_is_left_alone() {
    const CALICO: &str =
        r#"{ "name": "k8s", "plugins": [{ "type": "ptp" }, { "type": "portmap" }] }"#;
    let files = [("10-calico.conflist", CALICO), ("20-old.conflist", LIST)];
    let node = Node::new("elsewhere", &files);
    let why = node.installation.install().unwrap_err().to_string();
    let begin = "plugin `portmap` of 10-calico.conflist is not in ";
    assert!(
        why.starts_with(begin) && why.contains("cni.binDir"),
        "{why}"
    );
    assert!(!node.has("10-calico.conflist") && !node.has("20-old.conflist"));
    assert!(node.installation.has_network().unwrap());
    fs::write(node.installation.bin_dir.join("portmap"), "").unwrap();
    assert_eq!(node.installation.repair().unwrap().len(), 1);
    assert!(node.has("10-calico.conflist"));
}

#[test]
fn without_a_network_there_is_nothing_to_chain_to() {
    let node = Node::new("none", &[]);
    assert!(!node.installation.has_network().unwrap());
    assert_eq!(
        node.installation.install().unwrap().len(),
        1,
        "the program only"
    );
    node.installation.uninstall().unwrap();
    let mut gone = node.installation.clone();
    gone.conf_dir = node.root.join("not-there");
    let why = gone.repair().unwrap_err().to_string();
    assert!(
        why.starts_with("cannot list ") && why.ends_with("not-there"),
        "{why}"
    );
}
