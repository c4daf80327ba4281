//! What is valid in a configuration, but probably a mistake. `--check-config` prints it, and a start logs it.

use crate::config::Config;
use crate::wire::certificates::Certificates;

/// The warnings, each a sentence that names the key.
pub(super) fn warnings(config: &Config, certificates: Option<&Certificates>) -> Vec<String> {
    let mut warnings = certificates.map(Certificates::warnings).unwrap_or_default();
    if config.http.routes.is_empty() {
        let but = if config.http.openapi { " but GET /openapi.json" } else { "" };
        let without = |listener: &str| {
            format!(
                "listeners.{listener}: there are no [[http_routes]], so each request there{but} gets 404"
            )
        };
        warnings.extend(config.http.listeners.iter().map(|listener| without(&listener.name)));
    }
    warnings
}
