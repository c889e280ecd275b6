//! How much memory the system has left, and how much the process has held.

use std::fs;
use std::path::Path;

/// Memory that a program can still take, in bytes: what is free, or what the limits of its control
/// groups leave where that is less. `None` where the system does not say.
pub fn available_memory() -> Option<usize> {
    let free = proc_kilobytes("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_in_groups(Path::new("/sys/fs/cgroup"), &groups);
    free.into_iter().chain(left).min()
}

/// Memory that this process holds now, in bytes.
pub fn resident_memory() -> Option<usize> {
    proc_kilobytes("/proc/self/status", "VmRSS:").map(|kib| kib * 1024)
}

/// Most memory that this process has held, in bytes.
pub fn peak_memory() -> Option<usize> {
    proc_kilobytes("/proc/self/status", "VmHWM:").map(|kib| kib * 1024)
}

fn proc_kilobytes(path: &str, key: &str) -> Option<usize> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Files of a control group: its limit, what it uses, and in `memory.stat` the cached part of that
/// which the kernel gives back when it is asked for.
struct GroupFiles {
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
}

const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file ",
};
const VERSION_2: GroupFiles =
    GroupFiles { limit: "memory.max", used: "memory.current", cached: "inactive_file " };

/// The least that is left in the groups of a process (`/proc/self/cgroup`) and in those around
/// them.
fn left_in_groups(mount: &Path, groups: &str) -> Option<usize> {
    let left_of = |line: &str| {
        // `0::/path` in version 2, `4:memory:/path` in version 1.
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (mount, files) = match controllers {
            "" => (mount.to_path_buf(), VERSION_2),
            "memory" => (mount.join(controllers), VERSION_1),
            _ => return None,
        };
        // In a container the path may be one of the host; the container's own group is the root.
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors().filter_map(|at| left_in(&mount.join(at), &files)).min()
    };
    groups.lines().filter_map(left_of).min()
}

fn left_in(group: &Path, files: &GroupFiles) -> Option<usize> {
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<usize>().ok();
    let limit = number(files.limit)?;
    let used = number(files.used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(files.cached)?.parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn the_least_of_all_limits_around_the_process_counts() {
        let mount = tempfile::tempdir().unwrap();
        let left = |groups| left_in_groups(mount.path(), groups);
        assert_eq!(left("0::/a/b\n"), None, "no limit at all");
        group(
            &mount.path().join("a"),
            &[("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "anon 5")],
        );
        group(&mount.path().join("a/b"), &[("memory.max", "max"), ("memory.current", "600")]);
        assert_eq!(left("0::/a/b\n"), Some(300));
        assert_eq!(left("0::/\n"), None);
        // What is cached of files is given back.
        let stat = "anon 5\nactive_file 7\ninactive_file 450";
        group(&mount.path().join("a"), &[("memory.stat", stat)]);
        assert_eq!(left("0::/a/b\n"), Some(750));
        group(&mount.path().join("a/b"), &[("memory.max", "500")]);
        assert_eq!(left("0::/a/b\n"), Some(0), "more used than allowed");
        // Of a container that sees its own group as the root, with the host's name for it.
        group(mount.path(), &[("memory.max", "90"), ("memory.current", "20")]);
        assert_eq!(left("0::/docker/1f\n"), Some(70));
    }

    #[test]
    fn version_1_has_a_place_and_names_of_its_own() {
        let mount = tempfile::tempdir().unwrap();
        group(
            &mount.path().join("memory/job"),
            &[
                ("memory.limit_in_bytes", "4096"),
                ("memory.usage_in_bytes", "1096"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 96"),
            ],
        );
        let groups = "9:name=systemd:/\n4:memory:/job\n3:cpuset:/\n";
        assert_eq!(left_in_groups(mount.path(), groups), Some(3096));
    }
}
