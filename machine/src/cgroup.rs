//! The control group of a process: memory, CPU time and threads, versions 1 and 2.
//!
//! The bounds of all groups on the way to the root hold, so the smallest counts.

use std::path::{Path, PathBuf};

use crate::files::{Files, Reading, Unread};

/// What control groups allow the process. `None` where they set no bound.
#[derive(Clone, Debug)]
pub struct ControlGroup {
    /// Bytes of memory that are left: the limit less what is used; inactive file pages don't count as used.
    pub memory_bytes: Reading<Option<u64>>,
    /// The limit of memory in bytes, however much of it is used.
    pub memory_max_bytes: Reading<Option<u64>>,
    /// CPUs' worth of time.
    pub cpus: Reading<Option<f64>>,
    /// Threads, those that run included.
    pub threads: Reading<Option<u64>>,
}

/// A group's folder. The names of the files in it depend on the version.
enum Group {
    V1(String),
    V2(String),
}

/// Version 1 writes "no limit" as the largest multiple of a page. No real limit is as large as this.
const UNLIMITED_BYTES_MIN: u64 = 1 << 60;

impl ControlGroup {
    /// Reads the groups of a process: `process` is its folder in `/proc`.
    #[must_use]
    pub fn read(files: &Files, process: &str) -> Self {
        let find = |controller| levels(files, process, controller);
        let least = |bounds: Vec<u64>| bounds.into_iter().min();
        Self {
            memory_bytes: find("memory")
                .and_then(|groups| each(&groups, |group| memory_left(files, group)))
                .map(least),
            memory_max_bytes: find("memory")
                .and_then(|groups| each(&groups, |group| memory_max(files, group)))
                .map(least),
            cpus: find("cpu")
                .and_then(|groups| each(&groups, |group| quota(files, group)))
                .map(|quotas| quotas.into_iter().reduce(f64::min)),
            threads: find("pids")
                .and_then(|groups| each(&groups, |group| threads_max(files, group)))
                .map(least),
        }
    }
}

fn each<T>(groups: &[Group], read: impl Fn(&Group) -> Reading<Option<T>>) -> Reading<Vec<T>> {
    groups.iter().filter_map(|group| read(group).transpose()).collect()
}

/// The process's group for a controller and every one above it. Empty where nothing is mounted.
fn levels(files: &Files, process: &str, controller: &str) -> Reading<Vec<Group>> {
    let groups = files.text(&format!("/proc/{process}/cgroup"))?;
    let mounts = files.text(&format!("/proc/{process}/mountinfo"))?;
    let (mut v1, mut v2) = (None, None);
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if names.split(',').any(|name| name == controller) {
            v1 = Some(path);
        } else if names.is_empty() {
            v2 = Some(path);
        }
    }
    let Some(path) = v1.or(v2) else { return Ok(Vec::new()) };
    let Some((mount_root, mount_point)) = find_mount(&mounts, v1.map(|_| controller)) else {
        return Ok(Vec::new());
    };
    // In a namespace the group's path may begin above the mount: then only the mount itself can be seen.
    let below = Path::new(path).strip_prefix(mount_root).unwrap_or(Path::new(""));
    let folders = below.ancestors().map(|folder| PathBuf::from(mount_point).join(folder));
    let folders = folders.map(|folder| folder.to_string_lossy().trim_end_matches('/').to_owned());
    Ok(match v1 {
        Some(_) => folders.map(Group::V1).collect(),
        None => folders.map(Group::V2).collect(),
    })
}

/// Root and mount point of a version 1 controller, or of version 2.
fn find_mount<'a>(mounts: &'a str, controller: Option<&str>) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split_whitespace();
        let (kind, options) = (after.next()?, after.nth(1)?);
        let fits = match controller {
            Some(name) => kind == "cgroup" && options.split(',').any(|option| option == name),
            None => kind == "cgroup2",
        };
        let mut before = before.split_whitespace().skip(3);
        fits.then_some((before.next()?, before.next()?))
    })
}

/// A missing file is no bound: the root of a hierarchy has no files of this kind.
fn present<T>(reading: Reading<T>) -> Reading<Option<T>> {
    match reading {
        Ok(value) => Ok(Some(value)),
        Err(unread) if unread.is_absent() => Ok(None),
        Err(unread) => Err(unread),
    }
}

/// A number, or "max".
fn bound(files: &Files, path: &str) -> Reading<Option<u64>> {
    match present(files.text(path))?.as_deref() {
        None | Some("max") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| Unread::malformed(path)),
    }
}

fn memory_left(files: &Files, group: &Group) -> Reading<Option<u64>> {
    let (limit, used, stat, inactive) = match group {
        Group::V1(folder) => (
            format!("{folder}/memory.limit_in_bytes"),
            format!("{folder}/memory.usage_in_bytes"),
            format!("{folder}/memory.stat"),
            "total_inactive_file",
        ),
        Group::V2(folder) => (
            format!("{folder}/memory.max"),
            format!("{folder}/memory.current"),
            format!("{folder}/memory.stat"),
            "inactive_file",
        ),
    };
    let Some(limit) = bound(files, &limit)?.filter(|limit| *limit < UNLIMITED_BYTES_MIN) else {
        return Ok(None);
    };
    let used: u64 = files.number(&used)?;
    let text = files.text(&stat)?;
    let field = text.lines().find_map(|line| line.strip_prefix(inactive)?.strip_prefix(' '));
    let inactive: u64 =
        field.and_then(|n| n.trim().parse().ok()).ok_or_else(|| Unread::malformed(&stat))?;
    Ok(Some(limit.saturating_sub(used.saturating_sub(inactive))))
}

fn memory_max(files: &Files, group: &Group) -> Reading<Option<u64>> {
    match group {
        Group::V1(folder) => {
            let limit = bound(files, &format!("{folder}/memory.limit_in_bytes"))?;
            Ok(limit.filter(|limit| *limit < UNLIMITED_BYTES_MIN))
        }
        Group::V2(folder) => bound(files, &format!("{folder}/memory.max")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a scheduling period are small")]
fn quota(files: &Files, group: &Group) -> Reading<Option<f64>> {
    match group {
        Group::V1(folder) => {
            let quota: Option<i64> = present(files.number(&format!("{folder}/cpu.cfs_quota_us")))?;
            let Some(quota) = quota.filter(|quota| *quota > 0) else { return Ok(None) };
            let period: u64 = files.number(&format!("{folder}/cpu.cfs_period_us"))?;
            Ok(Some(quota as f64 / period as f64))
        }
        Group::V2(folder) => {
            let path = format!("{folder}/cpu.max");
            let Some(text) = present(files.text(&path))? else { return Ok(None) };
            let malformed = || Unread::malformed(&path);
            let (quota, period) = text.split_once(' ').ok_or_else(malformed)?;
            if quota == "max" {
                return Ok(None);
            }
            let quota: u64 = quota.parse().map_err(|_| malformed())?;
            let period: u64 = period.trim().parse().map_err(|_| malformed())?;
            Ok(Some(quota as f64 / period as f64))
        }
    }
}

fn threads_max(files: &Files, group: &Group) -> Reading<Option<u64>> {
    let (Group::V1(folder) | Group::V2(folder)) = group;
    bound(files, &format!("{folder}/pids.max"))
}
