//! YAML text → documents whose every node knows its line. Bounded: aliases count as what they stand for,
//! nesting and size have an end.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr::Scalar;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Number, Value};

use super::problem::Position;
use crate::mesh::{FieldPath, Segment};

/// Deepest nesting: Kubernetes' own objects need about 15.
const MAX_DEPTH: usize = 64;
/// Most nodes of one file, aliases expanded. A file of the largest size that is read has about a quarter.
const MAX_NODES: usize = 2_000_000;

/// Why a text is no YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct YamlError {
    pub(crate) position: Position,
    pub(crate) message: String,
}

/// A node with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) content: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Pair>),
}

/// A key with its place, and its value.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    position: Position,
    key: String,
    value: Node,
}

impl Node {
    /// The node as JSON. Keys without a value are left out, as the Kubernetes API does.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(value) => Value::Number(value.clone()),
            Content::Text(value) => Value::String(value.clone()),
            Content::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Map(pairs) => {
                let there = pairs
                    .iter()
                    .filter(|pair| !matches!(pair.value.content, Content::Null));
                let pairs = there.map(|pair| (pair.key.clone(), pair.value.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// The value under a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Content::Map(pairs) = &self.content else {
            return None;
        };
        pairs
            .iter()
            .find(|pair| pair.key == key)
            .map(|pair| &pair.value)
    }

    /// The text under a key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Where a field is, or the nearest that there is of the way to it.
    pub(crate) fn locate(&self, path: &FieldPath) -> Position {
        let mut node = self;
        let mut position = self.position;
        for segment in &path.0 {
            match (segment, &node.content) {
                (Segment::Key(key), Content::Map(pairs)) => {
                    let Some(pair) = pairs.iter().find(|pair| pair.key == *key) else {
                        break;
                    };
                    (position, node) = (pair.position, &pair.value);
                }
                (Segment::Index(index), Content::List(items)) => {
                    let Some(item) = items.get(*index) else { break };
                    (position, node) = (item.position, item);
                }
                _ => break,
            }
        }
        position
    }
}

/// Reads all documents of a text. Empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| explain(text, &error))?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

fn position_of(span: Span) -> Position {
    position(span.start.line(), span.start.col())
}

/// Lines count from 1 already, columns from 0.
fn position(line: usize, column: usize) -> Position {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Position {
        line: number(line.max(1)),
        column: number(column).saturating_add(1),
    }
}

/// The parser's complaint, or the usual cause of it.
fn explain(text: &str, error: &ScanError) -> YamlError {
    let at = position(error.marker().line(), error.marker().col());
    // The parser may only notice on the line before, where a value could have gone on.
    let near = text.lines().zip(1..).skip(at.line as usize - 1).take(2);
    let mut tabbed = near.filter(|(line, _)| is_tab_indented(line));
    if let Some((_, line)) = tabbed.next() {
        let message = "a tab indents this line: YAML allows only spaces there".to_owned();
        return YamlError {
            position: position(line, 0),
            message,
        };
    }
    let message = if at.line as usize > text.lines().count() {
        format!(
            "the file ends in the middle of something ({}): is it complete?",
            error.info()
        )
    } else {
        format!(
            "this is not YAML ({}): correct the line or the one before it",
            error.info()
        )
    };
    YamlError {
        position: at,
        message,
    }
}

fn is_tab_indented(line: &str) -> bool {
    line.chars()
        .take_while(|c| c.is_whitespace())
        .any(|c| c == '\t')
}

/// What is being put together.
enum Open {
    List(Vec<Node>),
    Map {
        pairs: Vec<Pair>,
        seen: HashMap<String, Position>,
        key: Option<(Position, String)>,
    },
}

struct Frame {
    position: Position,
    anchor: usize,
    open: Open,
    /// Nodes before it, to know its size.
    before: usize,
}

#[derive(Default)]
struct Builder {
    frames: Vec<Frame>,
    /// Nodes that can be referred to, with their sizes.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    documents: Vec<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let at = position_of(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, at)?;
                let node = Node {
                    position: at,
                    content: scalar(text, style, tag.as_ref(), at)?,
                };
                self.finish(node, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => self.open(at, anchor, Open::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let (pairs, seen, key) = (Vec::new(), HashMap::new(), None);
                self.open(at, anchor, Open::Map { pairs, seen, key })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    let message = "an alias refers to what contains it: write it out".to_owned();
                    return Err(YamlError {
                        position: at,
                        message,
                    });
                };
                let size = *size;
                // Counted before it is copied: ten aliases of ten aliases of ten … end here.
                if self.nodes.saturating_add(size) > MAX_NODES {
                    return Err(too_large(at));
                }
                let node = Node {
                    position: at,
                    content: node.content.clone(),
                };
                self.nodes += size;
                self.finish(node, 0, size)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            Err(too_large(at))
        } else {
            Ok(())
        }
    }

    fn open(&mut self, position: Position, anchor: usize, open: Open) -> Result<(), YamlError> {
        if self.frames.len() >= MAX_DEPTH {
            let message =
                format!("nested more than {MAX_DEPTH} levels deep: no Kubernetes object is");
            return Err(YamlError { position, message });
        }
        let before = self.nodes;
        self.count(1, position)?;
        self.frames.push(Frame {
            position,
            anchor,
            open,
            before,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let content = match frame.open {
            Open::List(items) => Content::List(items),
            Open::Map { pairs, .. } => Content::Map(merge(pairs)),
        };
        let node = Node {
            position: frame.position,
            content,
        };
        self.finish(node, frame.anchor, self.nodes - frame.before)
    }

    fn finish(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), YamlError> {
        if anchor != 0 {
            self.count(size, node.position)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.frames.last_mut().map(|frame| &mut frame.open) {
            None => {
                if !matches!(node.content, Content::Null) {
                    self.documents.push(node);
                }
            }
            Some(Open::List(items)) => items.push(node),
            Some(Open::Map { pairs, seen, key }) => match key.take() {
                Some((position, key)) => pairs.push(Pair {
                    position,
                    key,
                    value: node,
                }),
                None => *key = Some(read_key(node, seen)?),
            },
        }
        Ok(())
    }
}

fn too_large(position: Position) -> YamlError {
    let message = format!(
        "more than {MAX_NODES} values, aliases expanded: split the file or write less with aliases"
    );
    YamlError { position, message }
}

fn read_key(
    node: Node,
    seen: &mut HashMap<String, Position>,
) -> Result<(Position, String), YamlError> {
    let position = node.position;
    let key = match node.content {
        Content::Text(text) => text,
        // Kubernetes reads YAML as JSON, whose keys are texts: `80: {…}` is the key "80".
        Content::Number(number) => number.to_string(),
        Content::Bool(value) => value.to_string(),
        Content::Null | Content::List(_) | Content::Map(_) => {
            let message = "a key must be a text: put it in quotes".to_owned();
            return Err(YamlError { position, message });
        }
    };
    match seen.insert(key.clone(), position) {
        Some(first) if key != "<<" => {
            let message = format!(
                "`{key}` is here a second time, first on line {}: remove one",
                first.line
            );
            Err(YamlError { position, message })
        }
        _ => Ok((position, key)),
    }
}

/// `<<: *defaults`: keys that the map itself does not have.
fn merge(pairs: Vec<Pair>) -> Vec<Pair> {
    if !pairs.iter().any(|pair| pair.key == "<<") {
        return pairs;
    }
    let (merged, mut own): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|pair| pair.key == "<<");
    for source in merged {
        let maps = match source.value.content {
            Content::List(items) => items,
            _ => vec![source.value],
        };
        for map in maps {
            let Content::Map(pairs) = map.content else {
                continue;
            };
            for pair in pairs {
                if !own.iter().any(|other| other.key == pair.key) {
                    own.push(pair);
                }
            }
        }
    }
    own
}

fn scalar(
    text: Cow<'_, str>,
    style: ScalarStyle,
    tag: Option<&Cow<'_, Tag>>,
    at: Position,
) -> Result<Content, YamlError> {
    let as_text = text.clone().into_owned();
    let read = Scalar::parse_from_cow_and_metadata(text, style, tag);
    Ok(match read {
        None => {
            let message =
                format!("`{as_text}` is not what its tag says: correct it or drop the tag");
            return Err(YamlError {
                position: at,
                message,
            });
        }
        Some(Scalar::Null) => Content::Null,
        Some(Scalar::Boolean(value)) => Content::Bool(value),
        Some(Scalar::Integer(value)) => Content::Number(value.into()),
        // JSON has no NaN and no infinities.
        Some(Scalar::FloatingPoint(value)) => {
            Number::from_f64(value.into_inner()).map_or(Content::Text(as_text), Content::Number)
        }
        Some(Scalar::String(text)) => Content::Text(text.into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Content, parse};
    use crate::mesh::{FieldPath, Segment};

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let documents = parse(text).unwrap();
        let found: Vec<_> = documents
            .iter()
            .map(|node| node.to_json().to_string())
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, expected: &str) {
        let error = parse(text).unwrap_err();
        let at = error.position;
        assert_eq!(format!("{}:{}: {error}", at.line, at.column), expected);
    }

    #[test]
    fn yaml_is_read_as_the_json_that_kubernetes_makes_of_it() {
        check(
            "a: 1\nb: [x, true, null, 1.5]\n",
            &[r#"{"a":1,"b":["x",true,null,1.5]}"#],
        );
        check(
            "a: 1\n---\n---\n# nothing\n---\nb: 2\n",
            &[r#"{"a":1}"#, r#"{"b":2}"#],
        );
        check(
            "a: '1'\nb: \"x\\ny\"\nc: |\n  l1\n  l2\n",
            &[r#"{"a":"1","b":"x\ny","c":"l1\nl2\n"}"#],
        );
        check("a: &x {p: 1}\nb: *x\n", &[r#"{"a":{"p":1},"b":{"p":1}}"#]);
        check(
            "a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  p: 3\n",
            &[r#"{"a":{"p":1,"q":2},"b":{"p":3,"q":2}}"#],
        );
        check("8080: x\n", &[r#"{"8080":"x"}"#]);
        check("a:\nb: ~\nc: 1\n", &[r#"{"c":1}"#]);
        check("", &[]);
        check("# only a comment\n", &[]);
        check("{\"a\": [1, 2]}", &[r#"{"a":[1,2]}"#]);
        check("a: 1\r\nb: 2\r\n", &[r#"{"a":1,"b":2}"#]);
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        refuses(
            "a:\n\tb: 1\n",
            "2:1: a tab indents this line: YAML allows only spaces there",
        );
        refuses(
            "a: 1\nb: 2\na: 3\n",
            "3:1: `a` is here a second time, first on line 1: remove one",
        );
        refuses(
            "? [x]\n: 1\n",
            "1:3: a key must be a text: put it in quotes",
        );
        refuses(
            "a: &x [*x]\n",
            "1:8: an alias refers to what contains it: write it out",
        );
    }

    #[test]
    fn aliases_count_as_what_they_stand_for() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..10 {
            let before = level - 1;
            let items = vec![format!("*a{before}"); 10].join(",");
            let line = format!("a{level}: &a{level} [{items}]\n");
            bomb.push_str(&line);
        }
        let error = parse(&bomb).unwrap_err();
        assert!(
            error.message.starts_with("more than 2000000 values"),
            "{error}"
        );
    }

    #[test]
    fn nesting_has_an_end() {
        let error = parse(&"[".repeat(100)).unwrap_err();
        assert!(
            error.message.starts_with("nested more than 64 levels"),
            "{error}"
        );
    }

    #[test]
    fn a_field_is_found_where_it_is_written() {
        let documents = parse("a:\n  - b: 1\n    c: x\n  - b: 2\n").unwrap();
        let path = |segments: &[Segment]| FieldPath(segments.to_vec());
        let at = |path: &FieldPath| {
            let at = documents[0].locate(path);
            (at.line, at.column)
        };
        assert_eq!(at(&path(&["a".into(), 0.into(), "c".into()])), (3, 5));
        assert_eq!(at(&path(&["a".into(), 1.into(), "b".into()])), (4, 5));
        assert_eq!(at(&path(&["a".into(), 1.into(), "z".into()])), (4, 5));
        assert_eq!(at(&path(&["z".into()])), (1, 1));
        assert!(matches!(documents[0].content, Content::Map(_)));
    }
}
