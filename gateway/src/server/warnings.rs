//! What a valid configuration does that the operator probably did not mean. `--check-config` prints it, and a start logs it.

use crate::config::Config;
use crate::wire::certificates::Certificates;

/// The warnings, each a sentence that names the key.
pub(super) fn warnings(config: &Config, certificates: Option<&Certificates>) -> Vec<String> {
    let mut warnings = certificates.map(Certificates::warnings).unwrap_or_default();
    if config.http.routes.is_empty() {
        let without = |listener: &str| {
            format!(
                "listeners.{listener}: there are no [[http_routes]], so each request there gets 404"
            )
        };
        warnings.extend(config.http.listeners.iter().map(|listener| without(&listener.name)));
    }
    warnings
}
