//! Suggests the known name that a mistyped one probably means.

use strsim::damerau_levenshtein as distance;

/// The fewest letters of a name that is found as the beginning of another.
const BEGINNING_MIN: usize = 4;

/// The known name that is nearest to `wrong`, if it is near enough. A right name in the wrong table is near,
/// and so is one that has its last words too many or too few, such as its unit.
pub(crate) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // At most two letters, or a third of the name, may differ, and no more than half of it. A guess beyond that is more
    // likely wrong than right.
    let letters = wrong.chars().count();
    let far = (letters / 3).max(2).min(letters / 2);
    let wrong_last = last(wrong);
    known
        .into_iter()
        .map(|name| {
            let last = last(name);
            let by_words =
                if begins(wrong_last, last) || begins(last, wrong_last) { 2 } else { usize::MAX };
            let by_letters = distance(wrong, name).min(1 + distance(wrong_last, last));
            (by_letters.min(by_words), name)
        })
        .filter(|&(steps, _)| steps <= far)
        .min_by_key(|&(steps, name)| (steps, distance(wrong, name)))
        .map(|(_, name)| name)
}

/// Whether a name consists of the first words of another.
fn begins(name: &str, other: &str) -> bool {
    name.len() >= BEGINNING_MIN
        && other.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'))
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}
