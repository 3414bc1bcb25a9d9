//! What a program is made of, as a bill of materials in `CycloneDX` 1.6: the crates that are linked into it (no build
//! scripts, macros or other platforms' crates), and the libraries that are linked from elsewhere.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// A part of a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression; empty if nobody says one.
    pub(super) license: String,
    /// Package URL; `None`: it is ours.
    pub(super) purl: Option<String>,
}

/// Reads what `cargo tree --prefix none --format "{p}\t{l}"` prints.
pub(super) fn crates(tree: &str) -> BTreeSet<Part> {
    let read = |line: &str| {
        // What was shown before is marked.
        let line = line.strip_suffix(" (*)").unwrap_or(line);
        let (package, license) = line.split_once('\t')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        let is_ours = words.any(|word| word.starts_with("(/"));
        Some(Part {
            name: name.to_owned(),
            version: version.to_owned(),
            // As crates said it before SPDX.
            license: license
                .split('/')
                .map(str::trim)
                .collect::<Vec<_>>()
                .join(" OR "),
            purl: (!is_ours).then(|| format!("pkg:cargo/{name}@{version}")),
        })
    };
    tree.lines().filter_map(read).collect()
}

/// The bill of materials of the program `name`.
pub(super) fn bill((name, version): (&str, &str), parts: &BTreeSet<Part>) -> Value {
    let component = |part: &Part| {
        let mut component = json!({
            "type": "library",
            "bom-ref": format!("{}@{}", part.name, part.version),
            "name": part.name,
            "version": part.version,
        });
        if let Some(purl) = &part.purl {
            component["purl"] = purl.as_str().into();
        }
        if !part.license.is_empty() {
            component["licenses"] = json!([{ "expression": part.license }]);
        }
        component
    };
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": name,
            "name": name,
            "version": version,
        } },
        "components": parts.iter().map(component).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::{bill, crates};

    #[test]
    fn a_tree_of_crates_becomes_a_bill_of_materials() {
        let tree = "agent v0.1.0 (/somewhere/agent)\tApache-2.0\nrustls v0.23.1\tApache-2.0 OR MIT\n\
                    old v1.0.0+z3\tMIT / Apache-2.0\nrustls v0.23.1\tApache-2.0 OR MIT (*)\nquiet v2.0.0\t\n";
        let parts = crates(tree);
        let found = bill(("culvert", "0.1.0"), &parts);
        let expected = json!([
            { "type": "library", "bom-ref": "agent@0.1.0", "name": "agent", "version": "0.1.0",
              "licenses": [{ "expression": "Apache-2.0" }] },
            { "type": "library", "bom-ref": "old@1.0.0+z3", "name": "old", "version": "1.0.0+z3",
              "purl": "pkg:cargo/old@1.0.0+z3", "licenses": [{ "expression": "MIT OR Apache-2.0" }] },
            { "type": "library", "bom-ref": "quiet@2.0.0", "name": "quiet", "version": "2.0.0",
              "purl": "pkg:cargo/quiet@2.0.0" },
            { "type": "library", "bom-ref": "rustls@0.23.1", "name": "rustls", "version": "0.23.1",
              "purl": "pkg:cargo/rustls@0.23.1", "licenses": [{ "expression": "Apache-2.0 OR MIT" }] },
        ]);
        assert_eq!(found["components"], expected);
        assert_eq!(found["metadata"]["component"]["name"], "culvert");
        assert_eq!(crates("error: no such package\n"), BTreeSet::new());
    }
}
