//! A Rust file as tidy sees it: its place in the crate, its non-test lines, the paths that it names.

/// One file.
pub(crate) struct SourceFile {
    /// Path from the repository's root.
    pub(crate) name: String,
    /// Lines before the trailing test module.
    pub(crate) code: Vec<String>,
    /// Every line.
    pub(crate) all: Vec<String>,
}

impl SourceFile {
    pub(crate) fn new(name: String, text: &str) -> Self {
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        let tests = all.windows(2).position(|pair| {
            let item = pair[1].strip_prefix("pub(crate) ").unwrap_or(&pair[1]);
            pair[0] == "#[cfg(test)]" && item.starts_with("mod ") && item.ends_with('{')
        });
        let code = all[..tests.unwrap_or(all.len())].to_vec();
        Self { name, code, all }
    }

    /// Crate directory and module path: `userspace-l7/src/ring/tcp.rs` is `("userspace-l7", ["ring", "tcp"])`.
    /// `None` for what lies outside `src`.
    pub(crate) fn module(&self) -> Option<(&str, Vec<&str>)> {
        let (krate, path) = self.name.split_once("/src/")?;
        let path = path.strip_suffix(".rs")?;
        let modules = path
            .split('/')
            .filter(|part| !matches!(*part, "lib" | "main"))
            .collect();
        Some((krate, modules))
    }

    /// Whether the file as a whole is test code.
    pub(crate) fn is_test(&self) -> bool {
        let places = ["/tests.rs", "/tests/", "/benches/", "/fixture.rs"];
        self.name.starts_with("tests/") || places.iter().any(|place| self.name.contains(place))
    }

    /// Each top-level module of its own crate that a line names, with the line's number.
    ///
    /// Understands `crate::a::b`, `crate::{a::b, c}` and chains of `super::` that leave the file's own
    /// top-level module. A line of comment names nothing.
    pub(crate) fn imports(&self) -> Vec<(usize, String)> {
        let depth = self.module().map_or(0, |(_, modules)| modules.len());
        let mut found = Vec::new();
        for (index, line) in self.code.iter().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            let climb = "super::".repeat(depth.max(1));
            for prefix in ["crate::", climb.as_str()] {
                if prefix.starts_with("super") && depth == 0 {
                    continue;
                }
                for (at, _) in line.match_indices(prefix) {
                    let before = line[..at].chars().next_back();
                    if before
                        .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$' || c == ':')
                    {
                        continue;
                    }
                    let rest = self.statement(index, at + prefix.len());
                    found.extend(heads(&rest).into_iter().map(|name| (index + 1, name)));
                }
            }
        }
        found
    }

    /// The text from a column to the end of the statement, over several lines if need be.
    fn statement(&self, line: usize, column: usize) -> String {
        let mut text = self.code[line][column..].to_owned();
        for next in &self.code[line + 1..] {
            if text.contains(';') || !text.starts_with('{') {
                break;
            }
            text.push_str(next.trim());
        }
        text
    }
}

/// First segments of `a::b` or of each branch of `{a::b, c::{d, e}}`.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| -> Option<String> {
        let end = text
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        let is_module = text.chars().next().is_some_and(char::is_lowercase);
        is_module.then(|| text[..end].to_owned())
    };
    let Some(group) = path.strip_prefix('{') else {
        return name(path).into_iter().collect();
    };
    let mut heads = Vec::new();
    let (mut depth, mut begin) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begin = true,
            c if begin && !c.is_whitespace() => {
                heads.extend(name(&group[at..]));
                begin = false;
            }
            _ => {}
        }
    }
    heads
}

#[cfg(test)]
mod tests {
    use super::SourceFile;

    #[track_caller]
    fn check(name: &str, text: &str, expected: &[&str]) {
        let file = SourceFile::new(name.to_owned(), text);
        let imports: Vec<String> = file
            .imports()
            .into_iter()
            .map(|(_, module)| module)
            .collect();
        assert_eq!(imports, expected, "{text}");
    }

    #[test]
    fn imports_are_found_in_every_form() {
        let file = "userspace-l7/src/ring/tcp.rs";
        check(file, "use crate::tls::Session;", &["tls"]);
        check(
            file,
            "use crate::{io, tls::{Sealer, Opener}, hbone::Pool};",
            &["io", "tls", "hbone"],
        );
        check(
            file,
            "use crate::{\n    io::Duplex,\n    time,\n};",
            &["io", "time"],
        );
        check(
            file,
            "    let peer: crate::tls::VerifiedPeer = x;",
            &["tls"],
        );
        check(file, "use super::super::hbone::Pool;", &["hbone"]);
        check(file, "use super::buffers;", &[]);
        check(file, "// see crate::worker", &[]);
        check(file, "use mycrate::worker;", &[]);
        check(file, "use crate::Public;", &[]);
        check(
            file,
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::worker;\n}",
            &[],
        );
        check(
            file,
            "#[cfg(test)]\npub(crate) mod for_test {\n    use crate::worker;\n}",
            &[],
        );
    }
}
