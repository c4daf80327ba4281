//! Suggests the known name that a mistyped one probably means.

use strsim::damerau_levenshtein as distance;

/// The known name that is nearest to `wrong`, if it is near enough. A right name in the wrong table is near.
pub(crate) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // At most two letters, or a third of the name, may differ. A guess beyond that is more likely wrong than right.
    let far = (wrong.chars().count() / 3).max(2);
    let wrong_last = last(wrong);
    known
        .into_iter()
        .map(|name| (distance(wrong, name).min(1 + distance(wrong_last, last(name))), name))
        .filter(|&(steps, _)| steps <= far)
        .min_by_key(|&(steps, name)| (steps, distance(wrong, name)))
        .map(|(_, name)| name)
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}
