//! The watch tells of changes however they are made.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::ManifestWatch;

/// Longer than any wait of the watch itself.
const DEADLINE: Duration = Duration::from_secs(20);

/// Changes and errors of each news.
type News = Receiver<(usize, bool)>;

fn watch(directory: &Path) -> (ManifestWatch, News) {
    let (sender, receiver) = channel();
    let take = move |update: super::Update, _: &super::Manifests| {
        // The test may have ended.
        let _sent = sender.send((update.changes.len(), update.problems.stale));
    };
    (
        ManifestWatch::start(directory.to_owned(), take).unwrap(),
        receiver,
    )
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("culvert-watch-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[test]
fn changes_are_told_however_they_are_made() {
    let path = directory("changes");
    let (watch, news) = watch(&path);
    let next = || news.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        next(),
        (0, false),
        "the first state is told even if it is empty"
    );
    fs::write(path.join("a.yaml"), namespace("a")).unwrap();
    assert_eq!(next(), (1, false));
    // Editors and kubelets write elsewhere and rename.
    fs::write(path.join("b.tmp"), namespace("b")).unwrap();
    fs::rename(path.join("b.tmp"), path.join("b.yaml")).unwrap();
    assert_eq!(next(), (1, false));
    fs::write(path.join("a.yaml"), "kind: [").unwrap();
    assert_eq!(next(), (0, true));
    fs::remove_file(path.join("a.yaml")).unwrap();
    assert_eq!(next(), (1, false));
    drop(watch);
    assert!(news.try_recv().is_err(), "after the watch nothing is told");
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_file_is_read_when_its_writer_is_done() {
    let path = directory("writer");
    let (_watch, news) = watch(&path);
    let next = || news.recv_timeout(DEADLINE).unwrap();
    assert_eq!(next(), (0, false));
    let text = namespace("a");
    let (first, second) = text.split_at(30);
    let mut file = fs::File::create(path.join("a.yaml")).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    assert_eq!(next(), (1, false));
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_directory_may_come_later_and_come_back() {
    let path = directory("later");
    fs::remove_dir_all(&path).unwrap();
    let (_watch, news) = watch(&path);
    let next = || news.recv_timeout(DEADLINE).unwrap();
    assert_eq!(next(), (0, true));
    for round in ["a", "b"] {
        let staged = directory(&format!("staged-{round}"));
        fs::write(staged.join("a.yaml"), namespace(round)).unwrap();
        fs::rename(&staged, &path).unwrap();
        let (changes, stale) = next();
        assert!(changes > 0 && !stale);
        let away = std::env::temp_dir().join(format!("culvert-watch-{}-away", std::process::id()));
        fs::rename(&path, &away).unwrap();
        assert_eq!(next(), (0, true));
        fs::remove_dir_all(&away).unwrap();
    }
}
