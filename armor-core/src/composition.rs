//! Compositions: which elements an ARMOR has, in TOML.
//!
//! ```toml
//! [armor]
//! kind = "daemon"
//!
//! [[element]]
//! name = "daemon_tcp_mgmt"
//! listen = "127.0.0.1:0"
//! ```
//!
//! `arbiter = true` gives the element an Arbiter, a thread, of its own (see [`crate::arbiter`]). Everything beside `name` and
//! `arbiter` belongs to the element. Errors carry file, line and column.

use std::collections::HashSet;
use std::path::Path;

use armor_proto::operation::Operation as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::element::{AnyElement, BuildError, ElementKind, Setup, Subscription};
use crate::operations::SendReliable;

/// A composition as read from TOML; its elements are known to exist and their keys to be right.
#[derive(Debug, Clone)]
pub struct Composition {
    file: String,
    text: String,
    kind: String,
    elements: Vec<String>,
    threads: Vec<Thread>,
}

/// The thread that an element lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The ARMOR's own thread, with all other elements.
    Main,
    /// An Arbiter of its own: `arbiter = true`.
    Own,
}

/// A finding that is no error: `armor check` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub String);

/// What is wrong with a composition. The text names file, line and column and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}:{column}: {what}")]
pub struct CompositionError {
    /// File, as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

impl Composition {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or is wrong.
    pub fn read(path: &Path, kinds: &[ElementKind]) -> Result<Composition, CompositionError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| CompositionError {
            file: file.clone(),
            line: 1,
            column: 1,
            what: format!("cannot be read: {error}"),
        })?;
        Self::parse(&file, &text, kinds)
    }

    /// Parses and checks text; `file` is for error messages.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(file: &str, text: &str, kinds: &[ElementKind]) -> Result<Composition, CompositionError> {
        let composition =
            Composition { file: file.to_owned(), text: text.to_owned(), kind: String::new(), elements: Vec::new(), threads: Vec::new() };
        let (kind, parts) = composition.tables()?;
        let mut elements = Vec::with_capacity(parts.len());
        let mut threads = Vec::with_capacity(parts.len());
        let mut spans = Vec::with_capacity(parts.len());
        for Part { name, span, thread, table } in parts {
            let element = composition.known(&name, &span, kinds)?;
            (element.check)(table).map_err(|error| composition.toml_error(&error, &span))?;
            if elements.contains(&name) {
                return Err(composition.error(span.start, format!("element {name:?} is listed twice; list it once")));
            }
            if let Some(other) = excluded(element, &elements, kinds) {
                return Err(composition.error(
                    span.start,
                    format!("elements {name:?} and {other:?} exclude each other: each does the whole of the same task; remove one"),
                ));
            }
            if let (Thread::Own, at) = thread
                && let Some(operation) = element.takes_messages()
            {
                return Err(composition
                    .error(at, format!("{name} takes messages over ({operation}), which it can in the main thread only; remove arbiter")));
            }
            if let (Thread::Own, at) = thread
                && element.keeps_states()
            {
                return Err(
                    composition.error(at, format!("{name} keeps captured states, which it can in the main thread only; remove arbiter"))
                );
            }
            elements.push(name);
            threads.push(thread);
            spans.push(span);
        }
        composition.same_thread(&elements, &threads, kinds)?;
        composition.reliable(&elements, &spans, kinds)?;
        if elements.is_empty() {
            return Err(composition.error(0, "no [[element]]: an ARMOR has at least one element; see `armor elements`".to_owned()));
        }
        Ok(Composition { kind, elements, threads: threads.into_iter().map(|(thread, _)| thread).collect(), ..composition })
    }

    /// The ARMOR's kind: "ftm", "daemon", "execution", … .
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Names of the elements in order.
    #[must_use]
    pub fn elements(&self) -> &[String] {
        &self.elements
    }

    /// The threads that the elements live in, in the same order.
    #[must_use]
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// The same composition with keys of elements set to other values, as `("daemon_tcp_mgmt", "listen", "\"0.0.0.0:7000\"")`.
    ///
    /// # Errors
    /// When an element is not in the composition or does not take the key or the value.
    pub fn with_settings(&self, settings: &[(String, String, String)], kinds: &[ElementKind]) -> Result<Composition, CompositionError> {
        let mut document: toml::Table = toml::from_str(&self.text).map_err(|error| self.toml_error(&error, &(0..0)))?;
        for (element, key, value) in settings {
            let found = document
                .get_mut("element")
                .and_then(toml::Value::as_array_mut)
                .into_iter()
                .flatten()
                .filter_map(toml::Value::as_table_mut)
                .find(|table| table.get("name").and_then(toml::Value::as_str) == Some(element));
            let Some(table) = found else {
                return Err(self.error(0, format!("cannot set {element}.{key}: no element {element:?} in this composition")));
            };
            // A value that is no TOML is taken as a string, so that addresses need no quotes on a command line.
            let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
                .ok()
                .and_then(|mut table| table.remove("v"))
                .unwrap_or_else(|| toml::Value::String(value.clone()));
            table.insert(key.clone(), value);
        }
        let text = toml::to_string(&document).map_err(|error| self.error(0, error.to_string()))?;
        Self::parse(&format!("{} (with settings)", self.file), &text, kinds)
    }

    /// What is not wrong but worth a look: operations that an element emits and no element of these compositions hears.
    #[must_use]
    pub fn unheard(compositions: &[&Composition], kinds: &[ElementKind]) -> Vec<Warning> {
        let present: Vec<&ElementKind> = compositions
            .iter()
            .flat_map(|composition| &composition.elements)
            .filter_map(|name| kinds.iter().find(|kind| kind.name == name))
            .collect();
        let heard: HashSet<_> = present.iter().flat_map(|kind| &kind.subscribes).map(|subscription| subscription.kind).collect();
        let mut told = HashSet::new();
        present
            .iter()
            .flat_map(|kind| kind.emits.iter().map(move |emit| (kind.name, emit)))
            .filter(|(_, emit)| !heard.contains(&emit.kind) && told.insert(emit.kind))
            .map(|(name, emit)| Warning(format!("{name} emits {} and no element hears it", emit.name)))
            .collect()
    }

    /// Makes the element at a place of this composition.
    pub(crate) fn build(&self, index: usize, kinds: &[ElementKind], setup: &Setup) -> Result<Box<dyn AnyElement>, CompositionError> {
        let (_, mut parts) = self.tables()?;
        let Part { name, span, table, .. } = parts.swap_remove(index);
        let kind = self.known(&name, &span, kinds)?;
        (kind.build)(table, setup).map_err(|error| match error {
            BuildError::Toml(error) => self.toml_error(&error, &span),
            BuildError::Refused(reason) => self.error(span.start, format!("element {name}: {reason}")),
        })
    }

    /// Everything that is needed to make the element at a place of this composition in another thread.
    pub(crate) fn blueprint(&self, index: usize, kinds: &[ElementKind], setup: &Setup) -> Result<Blueprint, CompositionError> {
        let kind = self.known(&self.elements[index], &(0..0), kinds)?.clone();
        Ok(Blueprint { composition: self.clone(), index, kind, setup: setup.clone() })
    }

    fn tables(&self) -> Result<(String, Vec<Part<'_>>), CompositionError> {
        let document = DeTable::parse(&self.text).map_err(|error| self.toml_error(&error, &(0..0)))?;
        let mut kind = "armor".to_owned();
        let mut parts = Vec::new();
        for (key, value) in document.into_inner() {
            let span = key.span();
            match (key.get_ref().as_ref(), value.into_inner()) {
                ("armor", DeValue::Table(table)) => kind = self.armor_table(table)?,
                ("element", DeValue::Array(list)) => {
                    for element in list {
                        parts.push(self.part(element)?);
                    }
                }
                (other, _) => {
                    return Err(self.error(span.start, format!("unknown table {other:?}: a composition has [armor] and [[element]]")));
                }
            }
        }
        Ok((kind, parts))
    }

    fn armor_table(&self, table: DeTable<'_>) -> Result<String, CompositionError> {
        let mut kind = "armor".to_owned();
        for (key, value) in table {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("kind", DeValue::String(text)) => kind = text.to_string(),
                ("kind", _) => return Err(self.error(value.span().start, "kind is a string, such as \"daemon\"".to_owned())),
                (other, _) => return Err(self.error(key.span().start, format!("unknown key {other:?} in [armor]: it has only kind"))),
            }
        }
        Ok(kind)
    }

    fn part<'a>(&self, element: Spanned<DeValue<'a>>) -> Result<Part<'a>, CompositionError> {
        let span = element.span();
        let DeValue::Table(mut table) = element.into_inner() else {
            return Err(self.error(span.start, "an element is a table: [[element]]".to_owned()));
        };
        let mut take = |wanted: &str| {
            let key = table.keys().find(|key| key.get_ref().as_ref() == wanted).cloned();
            key.and_then(|key| table.remove(&key)).map(|value| (value.span(), value.into_inner()))
        };
        let thread = match take("arbiter") {
            None => (Thread::Main, span.start),
            Some((span, DeValue::Boolean(own))) => (if own { Thread::Own } else { Thread::Main }, span.start),
            Some((span, _)) => {
                return Err(self.error(span.start, "arbiter is true (the element has a thread of its own) or false".to_owned()));
            }
        };
        match take("name") {
            Some((span, DeValue::String(name))) => Ok(Part { name: name.into_owned(), span, thread, table }),
            Some((span, _)) => Err(self.error(span.start, "name is a string, such as \"APP_COMM_CLIENT\"".to_owned())),
            None => Err(self.error(span.start, "this [[element]] has no name".to_owned())),
        }
    }

    fn known<'k>(&self, name: &str, span: &std::ops::Range<usize>, kinds: &'k [ElementKind]) -> Result<&'k ElementKind, CompositionError> {
        if let Some(kind) = kinds.iter().find(|kind| kind.name == name) {
            return Ok(kind);
        }
        let nearest = kinds
            .iter()
            .map(|kind| (strsim::jaro_winkler(&kind.name.to_lowercase(), &name.to_lowercase()), kind.name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.7)
            .map(|(_, nearest)| format!(" Did you mean {nearest:?}?"))
            .unwrap_or_default();
        Err(self.error(span.start, format!("unknown element {name:?}.{nearest} `armor elements` lists all of them")))
    }

    /// An Arbiter holds one element, so those that belong into one thread belong into the main one.
    fn same_thread(&self, names: &[String], threads: &[(Thread, usize)], kinds: &[ElementKind]) -> Result<(), CompositionError> {
        let present = |name: &str| names.iter().position(|present| present == name);
        for kind in kinds {
            let Some(index) = present(kind.name) else { continue };
            for other in kind.same_thread {
                let Some(other_index) = present(other) else { continue };
                let own = [threads[index], threads[other_index]].into_iter().find(|(thread, _)| *thread == Thread::Own);
                if let Some((_, at)) = own {
                    return Err(
                        self.error(at, format!("{} and {other} must live in one thread, which is the main one; remove arbiter", kind.name))
                    );
                }
            }
        }
        Ok(())
    }

    /// Acknowledged messages are kept by an element of the same ARMOR, or by none.
    fn reliable(&self, names: &[String], spans: &[std::ops::Range<usize>], kinds: &[ElementKind]) -> Result<(), CompositionError> {
        let has = |list: &[Subscription]| list.iter().any(|subscription| subscription.kind == SendReliable::KIND);
        let kind_of = |name: &String| kinds.iter().find(|kind| kind.name == name);
        if names.iter().filter_map(kind_of).any(|kind| has(&kind.subscribes)) {
            return Ok(());
        }
        let needs = names.iter().zip(spans).find(|(name, _)| kind_of(name).is_some_and(|kind| has(&kind.emits)));
        let Some((name, span)) = needs else { return Ok(()) };
        let add = kinds.iter().find(|kind| has(&kind.subscribes)).map_or("…", |kind| kind.name);
        Err(self.error(
            span.start,
            format!("{name} sends acknowledged messages, and no element here keeps them; add [[element]] name = {add:?}"),
        ))
    }

    fn toml_error(&self, error: &toml::de::Error, fallback: &std::ops::Range<usize>) -> CompositionError {
        let at = error.span().filter(|span| *span != (0..0)).map_or(fallback.start, |span| span.start);
        self.error(at, error.message().to_owned())
    }

    fn error(&self, at: usize, what: String) -> CompositionError {
        let before = self.text.get(..at).unwrap_or_default();
        CompositionError {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1,
            what,
        }
    }
}

struct Part<'a> {
    name: String,
    span: std::ops::Range<usize>,
    /// The thread, and where the TOML says so.
    thread: (Thread, usize),
    table: DeTable<'a>,
}

/// An element that is to be made in another thread.
pub(crate) struct Blueprint {
    composition: Composition,
    index: usize,
    kind: ElementKind,
    setup: Setup,
}

impl Blueprint {
    pub(crate) fn build(&self) -> Result<Box<dyn AnyElement>, CompositionError> {
        self.composition.build(self.index, std::slice::from_ref(&self.kind), &self.setup)
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn kind(&self) -> &ElementKind {
        &self.kind
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }
}

fn excluded<'a>(element: &ElementKind, present: &'a [String], kinds: &[ElementKind]) -> Option<&'a String> {
    present.iter().find(|other| {
        element.excludes.contains(&other.as_str())
            || kinds.iter().any(|kind| kind.name == other.as_str() && kind.excludes.contains(&element.name))
    })
}
