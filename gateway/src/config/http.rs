//! Checks `[http]` and `[[http_routes]]`: what the HTTP gateway serves, and its bounds.

use tidegate_machine::{capacity, descriptors};

use super::check::{DAY_MS, KIB, MIB};
use super::checked::*;
use super::typed::{self, Typed};
use super::values::{Checked, Checker, quoted};
use crate::http::OPENAPI_PATH;

/// Routes at most.
const ROUTES_MAX: usize = 10_000;

/// Longest path of a route, in bytes.
const PATH_BYTES_MAX: usize = 256;

/// The HTTP gateway's connections have the number of a shard that is not there: see [`crate::http`].
const SHARDS_MAX: i64 = 255;

/// Open connections, where `http.connections_max` is 0: no more than a quarter of the descriptors.
const CONNECTIONS_BY_DEFAULT: u64 = 1_000;

impl Checker<'_> {
    /// How many HTTP connections may be open; 0: no listener has HTTP.
    pub(super) fn http_connections_max(&self, typed: &Typed, shards: u16) -> Checked<u64> {
        let key = "http.connections_max";
        let max: u64 = self.number(key, typed.http.connections_max, 0..=1_000_000)?;
        if !typed.listeners.values().any(|listener| listener.wire.starts_with("http")) {
            return Ok(0);
        }
        if typed.shards > SHARDS_MAX {
            let reason = format!("with an HTTP listener there may be {SHARDS_MAX} at most");
            return Err(self.refuse("shards", typed.shards, reason));
        }
        let limit = descriptors::limit();
        let by_default = CONNECTIONS_BY_DEFAULT.min(limit.unwrap_or(u64::MAX) / 4).max(1);
        // Each is a descriptor with every driver. One has to be left for other clients.
        let room = capacity::connections_per_table(limit, shards.into()).saturating_sub(1);
        if let Some(limit) = limit.filter(|_| max > room) {
            let reason = format!(
                "the limit of open descriptors ({limit}) has room for {room} at most: raise it with `ulimit -n` or systemd's \
                 LimitNOFILE="
            );
            return Err(self.refuse(key, max, reason));
        }
        Ok(if max == 0 { by_default } else { max })
    }

    /// What is set for HTTP has a meaning only where a listener has it.
    fn http_listener(&self, typed: &Typed, listeners: &[ListenerConfig]) -> Checked<()> {
        if !listeners.is_empty() {
            return Ok(());
        }
        let reason = "no listener has HTTP, so it would mean nothing: add one, as in listeners.rest = { listen = \
                      \"0.0.0.0:7490\", wire = \"http\" }";
        if !typed.http_routes.is_empty() {
            let value = format!("{} routes", typed.http_routes.len());
            return Err(self.refuse("http_routes", value, reason));
        }
        self.origins.key_below("http").map_or(Ok(()), |key| Err(self.refuse(key, "set", reason)))
    }

    pub(super) fn http(
        &self,
        typed: &Typed,
        listeners: Vec<ListenerConfig>,
        routes: &[RouteConfig],
        connections_max: u64,
    ) -> Checked<HttpConfig> {
        let http = &typed.http;
        let file = &http.descriptor_set_file;
        let checked = HttpConfig {
            listeners,
            routes: self.http_routes(typed, routes)?,
            connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
            requests_max: self.number("http.requests_max", http.requests_max, 1..=1_000_000)?,
            head_bytes_max: self.number("http.head_bytes_max", http.head_bytes_max, KIB..=MIB)?,
            body_bytes_max: self.number(
                "http.body_bytes_max",
                http.body_bytes_max,
                1..=16 * MIB,
            )?,
            head_timeout: self.millis("http.head_timeout_ms", http.head_timeout_ms, 1..=DAY_MS)?,
            body_timeout: self.millis("http.body_timeout_ms", http.body_timeout_ms, 1..=DAY_MS)?,
            descriptor_set_file: (!file.is_empty()).then(|| file.into()),
            openapi: http.openapi,
        };
        self.http_listener(typed, &checked.listeners)?;
        Ok(checked)
    }

    fn http_routes(&self, typed: &Typed, routes: &[RouteConfig]) -> Checked<Vec<HttpRouteConfig>> {
        let typed_routes = &typed.http_routes;
        if typed_routes.len() > ROUTES_MAX {
            let reason = format!("there may be {ROUTES_MAX} at most");
            return Err(self.refuse("http_routes", typed_routes.len(), reason));
        }
        let mut checked = Vec::<HttpRouteConfig>::with_capacity(typed_routes.len());
        for (index, route) in typed_routes.iter().enumerate() {
            let has_descriptors = !typed.http.descriptor_set_file.is_empty();
            let route = self.http_route(index, route, routes, has_descriptors)?;
            let is_same =
                |other: &HttpRouteConfig| other.path == route.path && other.method == route.method;
            if let Some(first) = checked.iter().position(is_same) {
                let reason = format!(
                    "http_routes[{first}] has this path and the method {} too",
                    route.method.name()
                );
                let key = format!("http_routes[{index}].path");
                return Err(self.refuse(&key, quoted(&route.path), reason));
            }
            checked.push(route);
        }
        Ok(checked)
    }

    fn http_route(
        &self,
        index: usize,
        route: &typed::HttpRoute,
        routes: &[RouteConfig],
        has_descriptors: bool,
    ) -> Checked<HttpRouteConfig> {
        let key = |key: &str| format!("http_routes[{index}].{key}");
        self.http_path(&key("path"), &route.path)?;
        let methods = [HttpMethod::Get, HttpMethod::Post].map(|method| (method.name(), method));
        let kind = self.number(&key("type"), route.kind, 1..=i32::MAX.into())?;
        if !routes.iter().any(|to| (to.first_type..=to.last_type).contains(&kind)) {
            let reason = "no [[routes]] has this type, so no backend would get the requests";
            return Err(self.refuse(&key("type"), kind, reason));
        }
        let method = self.choice(&key("method"), &route.method, &methods)?;
        Ok(HttpRouteConfig {
            path: route.path.clone(),
            method,
            kind,
            body: self.http_body(&key, route, has_descriptors)?,
            is_public: route.public,
        })
    }

    fn http_body(
        &self,
        key: &dyn Fn(&str) -> String,
        route: &typed::HttpRoute,
        has_descriptors: bool,
    ) -> Checked<HttpBody> {
        let bodies = [("json", HttpBody::Json), ("bytes", HttpBody::Bytes)];
        let body = self.choice(&key("body"), &route.body, &bodies)?;
        let (request, response) = (route.request.clone(), route.response.clone());
        if request.is_empty() && response.is_empty() {
            return Ok(body);
        }
        let refuse =
            |name: &str, value: &str, reason| Err(self.refuse(&key(name), quoted(value), reason));
        if request.is_empty() {
            return refuse("request", "", "response is set: both messages have to be named");
        }
        if response.is_empty() {
            return refuse("response", "", "request is set: both messages have to be named");
        }
        if body == HttpBody::Bytes {
            return refuse("body", "bytes", "a route with messages takes JSON");
        }
        if !has_descriptors {
            let reason = "messages are described by a file: set http.descriptor_set_file; \
                          `protoc --include_imports --descriptor_set_out=FILE` makes it";
            return refuse("request", &request, reason);
        }
        Ok(HttpBody::Messages { request, response })
    }

    fn http_path(&self, key: &str, path: &str) -> Checked<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_segment = |segment: &str| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment.bytes().all(is_plain)
        };
        let segments = path.strip_prefix('/');
        let is_path = segments.is_some_and(|segments| segments.split('/').all(is_segment));
        if !is_path || path.len() > PATH_BYTES_MAX {
            let reason = format!(
                "a path is made of segments of A-Z, a-z, 0-9, -, ., _ and ~, as in /quiz/activity/list, and has at \
                 most {PATH_BYTES_MAX} bytes"
            );
            return Err(self.refuse(key, quoted(path), reason));
        }
        if path == OPENAPI_PATH {
            let reason = "the document that http.openapi describes the routes with has this path";
            return Err(self.refuse(key, quoted(path), reason));
        }
        Ok(())
    }
}
