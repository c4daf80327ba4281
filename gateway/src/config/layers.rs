//! Merges the layers of the configuration, and remembers where each value came from.
//!
//! Each layer is checked when it is added: its keys must be known, and its values must have the types of the defaults.
//! So the result always fits [`Typed`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::nearest::nearest;
use super::typed::{ANY, DEMO, Typed};
use super::{CONFIG_VARIABLE, ConfigError};

/// The prefix of environment variables.
pub(super) const PREFIX: &str = "TIDEGATE_";

/// Where a value came from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    File(PathBuf),
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
            Self::Flag(flag) => write!(f, "the flag {flag}"),
        }
    }
}

/// Where each value that is not a default came from.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where a key's value came from, as text. The elements of a list came from the same layer as the list.
    pub(super) fn of(&self, key: &str) -> String {
        let list = key.split('[').next().unwrap_or(key);
        self.0.get(list).map_or_else(|| "the default".into(), |origin| format!("from {origin}"))
    }

    /// Whether anything at or below this key was set.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.0.keys().any(|set| {
            set.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
    /// A key below this table that was set.
    pub(super) fn key_below(&self, table: &str) -> Option<&str> {
        let is_below =
            |key: &&String| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
        self.0.keys().find(is_below).map(String::as_str)
    }
}

/// The layers that were added so far, merged.
#[derive(Debug)]
pub(super) struct Layers {
    sample: Table,
    merged: Table,
    origins: Origins,
}

impl Layers {
    /// The defaults.
    pub(super) fn new() -> Self {
        let table = |typed| Table::try_from(typed).expect("the defaults serialise");
        Self {
            sample: table(Typed::sample()),
            merged: table(Typed::default()),
            origins: Origins::default(),
        }
    }

    /// Adds a file's text as a layer.
    pub(super) fn toml(&mut self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let table: Table =
            toml::from_str(text).map_err(|error| ConfigError::syntax(path, text, &error))?;
        let origin = Origin::File(path.to_owned());
        self.table("", table, &origin)
    }

    /// Adds the environment as a layer.
    pub(super) fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            if name == CONFIG_VARIABLE {
                continue;
            }
            let value = value.to_string_lossy();
            match self.key_of_variable(name) {
                Some(key) => self.text(&key, &value, &Origin::Variable(name.to_owned()))?,
                None if is_service_link(name, &value) => {}
                None => return Err(self.unknown_variable(name)),
            }
        }
        Ok(())
    }

    /// Adds one value, given as text, as a layer.
    pub(super) fn text(
        &mut self,
        key: &str,
        text: &str,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        let Some(sample) = self.sample_of(key) else {
            return Err(self.unknown_key(key, origin));
        };
        let parsed = text.trim().parse::<Value>().ok();
        let value = match (sample, parsed) {
            // Text needs no quotes here, since shells remove them.
            (Value::String(_), Some(Value::String(text))) => Value::String(text),
            (Value::String(_), _) | (_, None) => Value::String(text.to_owned()),
            (_, Some(value)) => value,
        };
        if matches!(sample, Value::Table(_)) && !value.is_table() {
            let reason = "this is a table: set the keys in it, one by one, or write a whole one, as in \
                          '{ listen = \"127.0.0.1:7443\", wire = \"tls\" }' (the quotes are for the shell)";
            return Err(refuse(key, &value, origin, reason.into()));
        }
        self.value(key, value, origin)
    }

    /// The merged configuration, and where each value came from.
    pub(super) fn finish(self) -> (Typed, Origins) {
        let typed = Typed::deserialize(Value::Table(self.merged))
            .expect("each layer's keys and kinds are checked");
        (typed, self.origins)
    }

    fn table(&mut self, key: &str, table: Table, origin: &Origin) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if key.is_empty() { name } else { format!("{key}.{name}") };
            self.value(&key, value, origin)?;
        }
        Ok(())
    }

    fn value(&mut self, key: &str, value: Value, origin: &Origin) -> Result<(), ConfigError> {
        let Some(sample) = self.sample_of(key) else {
            return Err(self.unknown_key(key, origin));
        };
        match (sample, value) {
            (Value::Table(_), Value::Table(table)) => {
                // It may be empty, and still has a meaning: [backends.mine].
                let path: Vec<_> = key.split('.').collect();
                place(&mut self.merged, &path, None);
                self.origins.0.insert(key.to_owned(), origin.clone());
                self.table(key, table, origin)
            }
            (sample, value) => {
                self.check_kind(key, &value, sample, origin)?;
                let path: Vec<_> = key.split('.').collect();
                place(&mut self.merged, &path, Some(value));
                self.origins.0.insert(key.to_owned(), origin.clone());
                Ok(())
            }
        }
    }

    /// Checks that a value has the type of the sample's, and each element of a list that of the sample's first.
    fn check_kind(
        &self,
        key: &str,
        value: &Value,
        sample: &Value,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        let expected = match (sample, value) {
            (Value::String(_), Value::String(_))
            | (Value::Integer(_), Value::Integer(_))
            | (Value::Boolean(_), Value::Boolean(_)) => return Ok(()),
            (Value::Array(samples), Value::Array(values)) => {
                // A list that is empty by default holds whole numbers.
                let sample = samples.first().unwrap_or(&Value::Integer(0));
                for (index, value) in values.iter().enumerate() {
                    self.check_kind(&format!("{key}[{index}]"), value, sample, origin)?;
                }
                return Ok(());
            }
            (Value::Table(sample), Value::Table(table)) => {
                for (name, value) in table {
                    let key = format!("{key}.{name}");
                    let sample = sample.get(name).ok_or_else(|| self.unknown_key(&key, origin))?;
                    self.check_kind(&key, value, sample, origin)?;
                }
                return Ok(());
            }
            (Value::Integer(_), Value::String(digits)) if is_whole(digits) => {
                "this number is larger than any that is taken"
            }
            (Value::String(_), _) => "it takes a text, in quotes",
            (Value::Integer(_), _) => "it takes a whole number",
            (Value::Boolean(_), _) => "it takes true or false",
            (Value::Array(samples), _) if samples.first().is_some_and(Value::is_table) => {
                "it takes a list of tables: write [[routes]] in a file, [{ types = [1, 9] }] elsewhere"
            }
            (Value::Array(samples), _) if samples.first().is_some_and(Value::is_str) => {
                "it takes a list of texts, as in [\"a\", \"b\"]"
            }
            (Value::Array(_), _) => "it takes a list of whole numbers, as in [1, 99]",
            _ => "it takes a table",
        };
        Err(refuse(key, value, origin, expected.into()))
    }

    /// The sample's value of a key.
    fn sample_of(&self, key: &str) -> Option<&Value> {
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        let mut value = self.sample.get(first)?;
        let mut parent = first;
        for name in rest.split('.').filter(|_| !rest.is_empty()) {
            // Of these, each may have any name, and all have the same keys.
            let known = match parent {
                "backends" => DEMO,
                "listeners" | "certificates" => ANY,
                _ => name,
            };
            parent = if known == name { name } else { "" };
            value = value.as_table()?.get(known)?;
        }
        Some(value)
    }

    /// All keys and tables, dotted.
    fn known_keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        collect_keys("", &self.sample, &mut keys);
        keys
    }

    fn key_of_variable(&self, name: &str) -> Option<String> {
        let key = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
        (variable_of_key(&key) == name && self.sample_of(&key).is_some()).then_some(key)
    }

    fn unknown_key(&self, key: &str, origin: &Origin) -> ConfigError {
        let known = self.known_keys();
        // In a list the known key has no number: routes[0].backnd -> routes.backend.
        let plain = without_indexes(key);
        let near = nearest(&plain, known.iter().map(String::as_str)).map(str::to_owned);
        let hint = match own_name(key).or(near) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known here: {}", siblings(&plain, &known).join(", ")),
        };
        ConfigError::UnknownKey { key: key.to_owned(), place: origin.to_string(), hint }
    }

    /// The variable of a key, or the beginning of the variables of a table's keys.
    fn variables_of_key(&self, key: &str) -> String {
        let more = if self.sample_of(key).is_some_and(Value::is_table) { "__..." } else { "" };
        format!("{}{more}", variable_of_key(key))
    }

    fn unknown_variable(&self, name: &str) -> ConfigError {
        let mut known = self.known_keys();
        known.push("config".into());
        let key = name.trim_start_matches(PREFIX).to_lowercase().replace("__", ".");
        let near = nearest(&key, known.iter().map(String::as_str)).map(str::to_owned);
        let hint = match own_name(&key).or(near) {
            Some(near) => format!("did you mean {}?", self.variables_of_key(&near)),
            None => {
                let siblings = siblings(&key, &known);
                let variables: Vec<_> =
                    siblings.into_iter().map(|key| self.variables_of_key(key)).collect();
                format!("known here: {}", variables.join(", "))
            }
        };
        ConfigError::UnknownVariable { name: name.to_owned(), hint }
    }
}

/// The key for which other programs have this name, in the same table. Its letters may be nearer to another key.
fn own_name(key: &str) -> Option<String> {
    let (table, name) = key.rsplit_once('.')?;
    let own = match name {
        "cert" | "cert_file" | "certificate" | "certificate_file" | "crt_file"
        | "fullchain_file" => "chain_file",
        "private_key" | "private_key_file" => "key_file",
        _ => return None,
    };
    table.starts_with("tls.certificates.").then(|| format!("{table}.{own}"))
}

/// The error for a wrong value.
pub(super) fn refuse(key: &str, value: &Value, origin: &Origin, reason: String) -> ConfigError {
    let (key, value) = (key.to_owned(), value.to_string());
    ConfigError::Value { key, value, origin: format!("from {origin}"), reason }
}

/// Sets the value at a path, or only ensures that there is a table.
fn place(table: &mut Table, path: &[&str], value: Option<Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    if let ([], Some(value)) = (rest, value.clone()) {
        table.insert((*first).to_owned(), value);
        return;
    }
    let below = table.entry(*first).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(below) = below {
        place(below, rest, value);
    }
}

/// Whether a text is a whole number that is too large for TOML.
fn is_whole(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn collect_keys(above: &str, table: &Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Table(table) => collect_keys(&key, table, keys),
            Value::Array(list) => {
                if let Some(Value::Table(table)) = list.first() {
                    collect_keys(&key, table, keys);
                }
            }
            _ => {}
        }
        keys.push(key);
    }
}

fn variable_of_key(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn without_indexes(key: &str) -> String {
    key.split('[').map(|part| part.split_once(']').map_or(part, |(_, after)| after)).collect()
}

/// The known keys in the table of a key; those at the top where there is no such table.
fn siblings<'a>(key: &str, known: &'a [String]) -> Vec<&'a str> {
    let table =
        |key: &str| key.rsplit_once('.').map_or(String::new(), |(table, _)| table.to_owned());
    let in_table = |wanted: &str| -> Vec<&'a str> {
        known.iter().filter(|key| table(key) == wanted).map(String::as_str).collect()
    };
    let here = in_table(&table(key));
    if here.is_empty() { in_table("") } else { here }
}

/// Whether a variable is one of those that container orchestrators set for a service with the name "tidegate":
/// `TIDEGATE_SERVICE_HOST`, `TIDEGATE_PORT=tcp://…`, `TIDEGATE_PORT_7400_TCP`.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.contains("_PORT")
            && (value.contains("://") || name.contains("_TCP") || name.contains("_UDP")))
}
