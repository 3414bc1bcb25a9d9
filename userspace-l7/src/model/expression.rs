//! Expressions in CEL over a request's attributes, as filters of access logs have them (`AccessLogging.filter`).

use std::fmt;
use std::sync::Arc;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue};

/// How the parser spells `a['b']`.
const INDEX: &str = "_[_]";

/// An expression in CEL over a request's attributes ([`CelExpression::ATTRIBUTES`]).
#[derive(Clone)]
pub struct CelExpression {
    text: Arc<str>,
    program: Arc<cel::Program>,
}

impl CelExpression {
    /// What an expression may be about: those of Envoy's attributes that are known here, by their roots. `request.duration` is in
    /// milliseconds, `response.flags` the sum of Envoy's bits.
    pub const ATTRIBUTES: [(&'static str, &'static [&'static str]); 7] = [
        (
            "request",
            &[
                "path",
                "url_path",
                "host",
                "scheme",
                "method",
                "headers",
                "referer",
                "useragent",
                "id",
                "protocol",
                "query",
                "size",
                "duration",
            ],
        ),
        (
            "response",
            &["code", "code_details", "flags", "grpc_status", "size"],
        ),
        ("connection", &["mtls"]),
        (
            "source",
            &["address", "port", "principal", "workload", "namespace"],
        ),
        ("destination", &["address", "port"]),
        ("upstream", &["address", "port"]),
        ("xds", &["route_name", "cluster_name"]),
    ];

    /// Compiles an expression.
    ///
    /// # Errors
    /// [`InvalidExpression`]: not CEL, or about something that is not known of a request.
    pub fn new(text: &str) -> Result<Self, InvalidExpression> {
        let invalid = |why: String| InvalidExpression {
            text: text.into(),
            why,
        };
        let program = cel::Program::compile(text).map_err(|error| {
            let first = error.to_string();
            invalid(first.lines().next().unwrap_or_default().trim().to_owned())
        })?;
        if let Some(name) = stranger(&program.expression().expr, &mut Vec::new()) {
            return Err(invalid(format!("`{name}` is no attribute of a request")));
        }
        Ok(Self {
            text: text.into(),
            program: Arc::new(program),
        })
    }

    /// The compiled form.
    pub fn program(&self) -> &cel::Program {
        &self.program
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for CelExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CelExpression").field(&self.text).finish()
    }
}

/// By text: the same text compiles to the same program.
impl PartialEq for CelExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// An expression that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no filter for requests: {why}")]
pub struct InvalidExpression {
    text: Arc<str>,
    why: String,
}

/// The first name in an expression that is neither an attribute nor one of `bound`, which macros such as `exists` have bound.
fn stranger<'e>(expression: &'e Expr, bound: &mut Vec<&'e str>) -> Option<String> {
    match expression {
        Expr::Unspecified | Expr::Literal(_) => None,
        Expr::Ident(name) => {
            let is_known = bound.contains(&&**name) || attributes(name).is_some();
            (!is_known).then(|| name.clone())
        }
        Expr::Select(select) => match &select.operand.expr {
            Expr::Ident(root) => unknown_field(root, &select.field, bound),
            operand => stranger(operand, bound),
        },
        Expr::Call(call) => {
            if let Some((root, field)) = field_by_index(call) {
                return unknown_field(root, field, bound);
            }
            let target = call.target.iter().map(|target| &target.expr);
            first(target.chain(call.args.iter().map(|one| &one.expr)), bound)
        }
        Expr::List(list) => first(list.elements.iter().map(|one| &one.expr), bound),
        Expr::Map(map) => first(
            map.entries.iter().flat_map(|one| of_entry(&one.expr)),
            bound,
        ),
        Expr::Struct(made) => first(
            made.entries.iter().flat_map(|one| of_entry(&one.expr)),
            bound,
        ),
        Expr::Comprehension(walk) => {
            let outside = [&walk.iter_range.expr, &walk.accu_init.expr];
            first(outside.into_iter(), bound).or_else(|| {
                let before = bound.len();
                bound.extend([&*walk.iter_var, &*walk.accu_var]);
                bound.extend(walk.iter_var2.as_deref());
                let inside = [
                    &walk.loop_cond.expr,
                    &walk.loop_step.expr,
                    &walk.result.expr,
                ];
                let found = first(inside.into_iter(), bound);
                bound.truncate(before);
                found
            })
        }
    }
}

fn first<'e>(
    mut parts: impl Iterator<Item = &'e Expr>,
    bound: &mut Vec<&'e str>,
) -> Option<String> {
    parts.find_map(|part| stranger(part, bound))
}

fn of_entry(entry: &EntryExpr) -> Vec<&Expr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value.expr],
        EntryExpr::MapEntry(entry) => vec![&entry.key.expr, &entry.value.expr],
    }
}

/// `root['field']`.
fn field_by_index(call: &CallExpr) -> Option<(&str, &str)> {
    let [operand, index] = &call.args[..] else {
        return None;
    };
    match (&operand.expr, &index.expr) {
        (Expr::Ident(root), Expr::Literal(LiteralValue::String(field)))
            if call.func_name == INDEX =>
        {
            Some((root, field.inner()))
        }
        _ => None,
    }
}

fn unknown_field(root: &str, field: &str, bound: &[&str]) -> Option<String> {
    if bound.contains(&root) {
        return None;
    }
    let is_known = attributes(root).is_some_and(|fields| fields.contains(&field));
    (!is_known).then(|| format!("{root}.{field}"))
}

fn attributes(root: &str) -> Option<&'static [&'static str]> {
    let mut all = CelExpression::ATTRIBUTES.iter();
    all.find(|(name, _)| *name == root)
        .map(|(_, fields)| *fields)
}

#[cfg(test)]
mod tests {
    use super::CelExpression;

    #[test]
    fn an_expression_speaks_of_requests_or_is_refused_with_the_reason() {
        for good in [
            "response.code >= 400",
            "request.headers['x-debug'] == 'on' && !connection.mtls",
            "has(request.headers.cookie)",
            "request.url_path.startsWith('/api') || response.flags != 0",
            "request['method'] in ['GET', 'HEAD']",
            "request.headers.exists(name, name.startsWith('x-') && request.headers[name] != '')",
            "{'a': response.code}['a'] == 200",
        ] {
            assert_eq!(CelExpression::new(good).unwrap().as_str(), good);
        }
        for (bad, stranger) in [
            ("node.id == 'x'", "node.id"),
            ("node == 'x'", "node"),
            ("response.headers['x'] == 'y'", "response.headers"),
            ("has(request.time)", "request.time"),
            ("request['total_size'] > 1", "request.total_size"),
            ("connection.mtls && !(source.labels == 1)", "source.labels"),
            ("request.headers.exists(name, other == name)", "other"),
            ("{'a': upstream.name}['a'] == 200", "upstream.name"),
        ] {
            let refused = CelExpression::new(bad).unwrap_err().to_string();
            let expected = format!(
                "`{bad}` is no filter for requests: `{stranger}` is no attribute of a request"
            );
            assert_eq!(refused, expected);
        }
        let syntax = CelExpression::new("response.code >=")
            .unwrap_err()
            .to_string();
        assert!(
            syntax.starts_with("`response.code >=` is no filter for requests: "),
            "{syntax}"
        );
    }
}
