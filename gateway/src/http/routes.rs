//! What is served: path and method -> type, and what its bodies are.

use std::collections::HashMap;

use hyper::Method;

use super::error::HttpError;
use super::transcode::{self, Body, MessageError};
use crate::config::{HttpConfig, HttpMethod};

/// A route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The type that its requests have for backends.
    pub(super) kind: i32,
    pub(super) body: Body,
    pub(super) is_public: bool,
}

/// A path's routes, by method.
#[derive(Clone, Debug, Default)]
pub(super) struct Methods {
    pub(super) get: Option<Route>,
    pub(super) post: Option<Route>,
}

/// All routes, by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    pub(super) paths: HashMap<String, Methods>,
}

impl Methods {
    /// The value of `Allow`.
    pub(super) fn allow(&self) -> &'static str {
        match (&self.get, &self.post) {
            (Some(_), Some(_)) => "GET, HEAD, POST, OPTIONS",
            (Some(_), None) => "GET, HEAD, OPTIONS",
            _ => "POST, OPTIONS",
        }
    }

    /// The route of a method.
    pub(super) fn route(&self, method: &Method) -> Result<&Route, HttpError> {
        let route = match *method {
            Method::GET | Method::HEAD => self.get.as_ref(),
            Method::POST => self.post.as_ref(),
            _ => None,
        };
        route.ok_or(HttpError::BadMethod { allow: self.allow() })
    }
}

impl Routes {
    /// Reads the messages that routes name.
    pub(super) fn load(config: &HttpConfig) -> Result<Self, MessageError> {
        let bodies = transcode::bodies(config)?;
        let mut paths = HashMap::<String, Methods>::new();
        for (route, body) in config.routes.iter().zip(bodies) {
            let methods = paths.entry(route.path.clone()).or_default();
            let place = match route.method {
                HttpMethod::Get => &mut methods.get,
                HttpMethod::Post => &mut methods.post,
            };
            *place = Some(Route { kind: route.kind, body, is_public: route.is_public });
        }
        Ok(Self { paths })
    }
}
