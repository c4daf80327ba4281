//! The operators' HTTP.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{TIMEOUT, until};

/// A client of a gateway's operators' HTTP.
#[derive(Debug)]
pub struct Operator {
    agent: ureq::Agent,
    address: SocketAddr,
    token: String,
}

impl Operator {
    /// An operator with this token.
    #[must_use]
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            // It keeps one connection: tests take away descriptors, and a new connection would wait.
            .max_idle_age(TIMEOUT)
            .build()
            .into();
        Self { agent, address, token: token.to_owned() }
    }

    /// GET: the status and the body.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, String) {
        let request = self.agent.get(self.url(path));
        let answer = request.header("Authorization", format!("Bearer {}", self.token)).call();
        read(answer)
    }

    /// POST: the status and the body.
    pub fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        let request = self.agent.post(self.url(path));
        let answer = request.header("Authorization", format!("Bearer {}", self.token)).send(body);
        read(answer)
    }

    /// GET: the JSON of an answer, which must have status 200.
    #[must_use]
    pub fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Pushes to a user. Returns the number of connections that it went to.
    pub fn push_user(&self, user_id: u64, kind: i32, body: &[u8]) -> u64 {
        self.count(&format!("/push/users/{user_id}?type={kind}"), body)
    }

    /// Pushes to a room. Returns the number of connections that it went to.
    pub fn push_room(&self, room: &str, kind: i32, body: &[u8]) -> u64 {
        self.count(&format!("/push/rooms/{room}?type={kind}"), body)
    }

    /// Pushes to everybody. Returns the number of connections that it went to.
    pub fn push_all(&self, kind: i32, body: &[u8]) -> u64 {
        self.count(&format!("/push/all?type={kind}"), body)
    }

    /// Closes a user's connections. Returns how many there were.
    pub fn kick(&self, user_id: u64) -> u64 {
        self.count(&format!("/users/{user_id}/kick"), b"")
    }

    /// Ends the memberships of a room of all of a user's connections. Returns how many there were.
    pub fn expel(&self, room: &str, user_id: u64) -> u64 {
        self.count(&format!("/rooms/{room}/expel/{user_id}"), b"")
    }

    /// POST: the JSON of an answer, which must have this status.
    #[track_caller]
    pub fn post_json(&self, path: &str, body: &[u8], expected: u16) -> Value {
        let (status, body) = self.post(path, body);
        assert_eq!(status, expected, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn count(&self, path: &str, body: &[u8]) -> u64 {
        let (status, body) = self.post(path, body);
        assert_eq!(status, 200, "{path}: {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["connections"].as_u64().unwrap()
    }

    /// The sum of a metric over the series with this name and a label that contains `label`. `None`: there is no
    /// such series.
    #[must_use]
    pub fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (series_name, labels) = series.split_once('{').unwrap_or((series, ""));
            let fits = series_name == name && labels.contains(label);
            fits.then(|| value.parse::<f64>().unwrap())
        });
        values.reduce(|sum, value| sum + value)
    }

    /// Waits until `is` accepts the value of a metric.
    pub fn wait_for_metric(&self, name: &str, label: &str, is: impl Fn(f64) -> bool) -> f64 {
        until(&format!("the metric {name}{{{label}}}"), || {
            self.metric(name, label).filter(|&value| is(value))
        })
    }

    /// Waits until a total of `/stats` has this value.
    pub fn wait_for_total(&self, name: &str, value: u64) {
        until(&format!("{name} is {value}"), || {
            (self.json("/stats")["totals"][name] == value).then_some(())
        });
    }

    /// The number of a room's members; 0 if there is no such room.
    #[must_use]
    pub fn members(&self, room: &str) -> u64 {
        let (status, body) = self.get(&format!("/rooms/{room}"));
        if status == 404 {
            return 0;
        }
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["members"].as_u64().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut answer = answer.unwrap();
    let body = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), body)
}
