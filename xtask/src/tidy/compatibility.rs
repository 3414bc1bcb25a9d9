//! The table of what works: each row says how far, and names tests that exist.

use super::source::SourceFile;

/// The document, seen from the root.
pub(crate) const DOCUMENT: &str = "docs/compatibility.md";
/// How far a feature works.
const STATES: [&str; 3] = ["works", "partly", "not"];

/// Complaints about the table: rows `| feature | state | what lacks | tests |`, whose tests are written `file::name`
/// for `tests/tests/file.rs`, or with a path from the root for a unit test: `userspace-l7/src/policy/path.rs::name`.
pub(crate) fn check(document: &str, files: &[SourceFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, line) in document.lines().enumerate() {
        let mut complain =
            |why: String| complaints.push(format!("{DOCUMENT}:{}: {why}", index + 1));
        for test in tests(line).filter(|test| !exists(test, files)) {
            complain(format!("there is no test `{test}`"));
        }
        let Some([_, state, lacking, proof]) = cells(line) else {
            continue;
        };
        if !STATES.contains(&state) {
            complain(format!("`{state}` is none of {}", STATES.join(", ")));
        }
        if state != "not" && tests(proof).next().is_none() {
            complain(format!("it {state}, and no test says so"));
        }
        if state == "partly" && lacking.is_empty() {
            complain("partly, and nothing says what lacks".to_owned());
        }
    }
    complaints
}

/// The four cells of a row; `None` for other lines, and for a table's head.
fn cells(line: &str) -> Option<[&str; 4]> {
    let row = line.strip_prefix("| ")?.strip_suffix('|')?;
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let cells: [&str; 4] = cells.try_into().ok()?;
    (cells[1] != "state").then_some(cells)
}

/// Names in backquotes that have two colons and begin as files do.
fn tests(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.contains("::") && !text.contains(' '))
}

fn exists(test: &str, files: &[SourceFile]) -> bool {
    let Some((file, name)) = test.rsplit_once("::") else {
        return false;
    };
    let path = if file.contains('/') {
        file.to_owned()
    } else {
        format!("tests/tests/{file}.rs")
    };
    let head = format!("fn {name}(");
    let mut files = files.iter().filter(|file| file.name == path);
    files.any(|file| {
        // Attributes may stand between the mark and the function.
        let lines = file.all.iter().enumerate();
        let mut places = lines.filter(|(_, line)| line.trim_start().starts_with(&head));
        places.any(|(at, _)| {
            let before = file.all[..at].iter().rev().map(|line| line.trim());
            let attributes: Vec<&str> = before.take_while(|line| line.starts_with("#[")).collect();
            // What is not run proves nothing.
            attributes.contains(&"#[test]")
                && !attributes.iter().any(|line| line.starts_with("#[ignore"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{SourceFile, check};

    #[track_caller]
    fn complaints(row: &str, expected: &[&str]) {
        let files = [
            SourceFile::new(
                "tests/tests/waypoint.rs".to_owned(),
                "//! X.\n#[test]\nfn pod_ip() {}\nfn no_test() {}\n",
            ),
            SourceFile::new(
                "xtask/src/tidy.rs".to_owned(),
                "//! X.\nmod tests {\n    #[test]\n    #[track_caller]\n    fn deep() {}\n    #[test]\n    #[ignore]\n    fn idle() {}\n}\n",
            ),
        ];
        assert_eq!(check(row, &files), expected, "{row}");
    }

    #[test]
    fn each_row_is_proven_by_tests_that_exist() {
        complaints("| feature | state | what lacks | tests |", &[]);
        complaints("| pod addresses | works | | `waypoint::pod_ip` |", &[]);
        complaints("| depth | works | | `xtask/src/tidy.rs::deep` |", &[]);
        complaints("| plugins | not | all of it | |", &[]);
        complaints(
            "| a | works | | `waypoint::no_test` |",
            &["docs/compatibility.md:1: there is no test `waypoint::no_test`"],
        );
        complaints(
            "| a | works | | `xtask/src/tidy.rs::idle` |",
            &["docs/compatibility.md:1: there is no test `xtask/src/tidy.rs::idle`"],
        );
        complaints(
            "| a | partly | | `waypoint::pod_ip` |",
            &["docs/compatibility.md:1: partly, and nothing says what lacks"],
        );
        complaints(
            "| a | works | | soon |",
            &["docs/compatibility.md:1: it works, and no test says so"],
        );
        complaints(
            "| a | maybe | | `waypoint::pod_ip` |",
            &["docs/compatibility.md:1: `maybe` is none of works, partly, not"],
        );
    }
}
