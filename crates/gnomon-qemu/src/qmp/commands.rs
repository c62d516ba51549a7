//! The commands we use, each with its types. All block for up to [`ANSWER_TIMEOUT`] unless they say otherwise.

use std::{os::fd::BorrowedFd, time::Duration};

use gnomon_terms::BytesPerSecond;
use serde_json::{Value, json};

use super::{MachineInfo, MemoryBackend, MigrationProgress, Qmp, QmpError, RunState, VmStatus};
use crate::spec::QemuVersion;

/// How long an ordinary command may take. They answer within a millisecond; one that drains a disk first (`stop`)
/// waits for its requests, which on a slow network disk is seconds.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

impl Qmp {
    /// Whether the guest runs.
    pub fn query_status(&self) -> Result<VmStatus, QmpError> {
        let answer = self.ask("query-status", json!({}))?;
        let word = answer.get("status").and_then(Value::as_str);
        let running = answer.get("running").and_then(Value::as_bool);
        match (word, running) {
            (Some(word), Some(running)) => Ok(VmStatus { running, state: RunState::of(word) }),
            _ => Err(unexpected("query-status", &answer)),
        }
    }

    /// Makes the guest run.
    pub fn cont(&self) -> Result<(), QmpError> {
        self.tell("cont", json!({}))
    }

    /// Makes the guest stand, after its disk requests in flight have ended.
    pub fn stop(&self) -> Result<(), QmpError> {
        self.tell("stop", json!({}))
    }

    /// Asks the guest's operating system to shut down (the power button). Returns at once.
    pub fn system_powerdown(&self) -> Result<(), QmpError> {
        self.tell("system_powerdown", json!({}))
    }

    /// Ends QEMU without asking the guest. What the guest has not flushed is lost to it, as with a power cut.
    pub fn quit(&self) -> Result<(), QmpError> {
        self.tell("quit", json!({}))
    }

    /// Which QEMU this is, from its greeting.
    pub fn version(&self) -> Result<QemuVersion, QmpError> {
        QemuVersion::of_greeting(self.greeting()).ok_or_else(|| unexpected("greeting", self.greeting()))
    }

    /// Every machine type that this QEMU knows.
    pub fn query_machines(&self) -> Result<Vec<MachineInfo>, QmpError> {
        let answer = self.ask("query-machines", json!({}))?;
        serde_json::from_value(answer)
            .map_err(|e| QmpError::Unexpected { command: "query-machines".into(), what: e.to_string() })
    }

    /// The guest's memory backends: RAM, also what was added while it ran.
    pub fn query_memdev(&self) -> Result<Vec<MemoryBackend>, QmpError> {
        let answer = self.ask("query-memdev", json!({}))?;
        serde_json::from_value(answer)
            .map_err(|e| QmpError::Unexpected { command: "query-memdev".into(), what: e.to_string() })
    }

    /// At which address QEMU has what the guest sees at `address` of its physical memory.
    pub fn host_address(&self, address: u64) -> Result<u64, QmpError> {
        let line = format!("gpa2hva {address:#x}");
        let answer = self.ask("human-monitor-command", json!({ "command-line": line }))?;
        let words = answer.as_str().unwrap_or_default();
        host_address_in(words).ok_or_else(|| unexpected("human-monitor-command gpa2hva", &answer))
    }

    /// Requests that the guest has made to its disks since QEMU began: reads, writes and flushes that have ended.
    pub fn query_block_requests(&self) -> Result<u64, QmpError> {
        let answer = self.ask("query-blockstats", json!({}))?;
        let disks = answer.as_array().ok_or_else(|| unexpected("query-blockstats", &answer))?;
        let counts = ["rd_operations", "wr_operations", "flush_operations"];
        let of = |disk: &Value| counts.iter().filter_map(|count| disk["stats"][count].as_u64()).sum::<u64>();
        Ok(disks.iter().map(of).sum())
    }

    /// The machine type that this QEMU runs, versioned: what a destination must be started with.
    pub fn current_machine(&self) -> Result<String, QmpError> {
        let answer = self.ask("qom-get", json!({ "path": "/machine", "property": "type" }))?;
        let kind = answer.as_str().ok_or_else(|| unexpected("qom-get", &answer))?;
        Ok(kind.strip_suffix("-machine").unwrap_or(kind).to_string())
    }

    /// Gives QEMU a descriptor under a name, for `fd:name`. A descriptor that had the name is closed. It lasts until
    /// it is used or closed.
    pub fn getfd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute_with_fd("getfd", json!({ "fdname": name }), fd, ANSWER_TIMEOUT).map(drop)
    }

    /// Takes a descriptor back that was given by [`Qmp::getfd`] and never used.
    pub fn closefd(&self, name: &str) -> Result<(), QmpError> {
        self.tell("closefd", json!({ "fdname": name }))
    }

    /// Gives QEMU a descriptor in the set `set`, which is made if need be: `/dev/fdset/N` names it wherever QEMU opens a
    /// file, in the mode in which the descriptor was opened.
    pub fn add_fd(&self, set: u64, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute_with_fd("add-fd", json!({ "fdset-id": set }), fd, ANSWER_TIMEOUT).map(drop)
    }

    /// Gives QEMU a descriptor in a set of its choice: which set, and the number that the descriptor has in QEMU. By `purpose`
    /// it is found again ([`Qmp::query_fd_sets`]) if the answer never comes.
    pub(crate) fn add_fd_anywhere(&self, fd: BorrowedFd<'_>, purpose: &str) -> Result<(u64, i32), QmpError> {
        let answer = self.execute_with_fd("add-fd", json!({ "opaque": purpose }), fd, ANSWER_TIMEOUT)?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64);
        let inside = number("fd").and_then(|fd| i32::try_from(fd).ok());
        number("fdset-id").zip(inside).ok_or_else(|| unexpected("add-fd", &answer))
    }

    /// The sets of descriptors that were given to QEMU for a `purpose` and not taken back.
    pub(crate) fn query_fd_sets(&self, purpose: &str) -> Result<Vec<u64>, QmpError> {
        let answer = self.ask("query-fdsets", json!({}))?;
        let sets = answer.as_array().ok_or_else(|| unexpected("query-fdsets", &answer))?;
        let is_for = |set: &&Value| set["fds"].as_array().into_iter().flatten().any(|fd| fd["opaque"] == purpose);
        Ok(sets.iter().filter(is_for).filter_map(|set| set["fdset-id"].as_u64()).collect())
    }

    /// Takes a set of descriptors back. What QEMU has open of it stays open; while the guest stands, QEMU may only note
    /// that the set is to go.
    pub fn remove_fd(&self, set: u64) -> Result<(), QmpError> {
        self.tell("remove-fd", json!({ "fdset-id": set }))
    }

    /// Starts an outgoing migration. It goes on after this returns.
    pub fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate", json!({ "uri": uri }))
    }

    /// Lets a QEMU that was started with `-incoming defer` take its guest from `uri`.
    pub fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate-incoming", json!({ "uri": uri }))
    }

    /// Switches migration capabilities on or off. Refused while a migration is active.
    pub fn migrate_set_capabilities(&self, capabilities: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> =
            capabilities.iter().map(|(name, on)| json!({ "capability": name, "state": on })).collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": list }))
    }

    /// The migration capabilities that this QEMU knows, and which are on.
    pub fn query_migrate_capabilities(&self) -> Result<Vec<(String, bool)>, QmpError> {
        let answer = self.ask("query-migrate-capabilities", json!({}))?;
        let one = |entry: &Value| {
            let name = entry.get("capability").and_then(Value::as_str)?;
            Some((name.to_string(), entry.get("state").and_then(Value::as_bool)?))
        };
        let all = answer.as_array().and_then(|list| list.iter().map(one).collect());
        all.ok_or_else(|| unexpected("query-migrate-capabilities", &answer))
    }

    /// Sets how fast QEMU may send and how long the guest may stand. Allowed at any time.
    pub fn migrate_set_parameters(&self, bandwidth: BytesPerSecond, downtime: Duration) -> Result<(), QmpError> {
        let millis = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX).min(DOWNTIME_LIMIT_MS);
        let bandwidth = bandwidth.0.min(BANDWIDTH_LIMIT);
        self.tell("migrate-set-parameters", json!({ "max-bandwidth": bandwidth, "downtime-limit": millis }))
    }

    /// How the migration stands.
    pub fn query_migrate(&self) -> Result<MigrationProgress, QmpError> {
        self.ask("query-migrate", json!({})).map(|answer| MigrationProgress::of(&answer))
    }

    /// Cancels the migration, if there is one. It is over once its status says so.
    pub fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.tell("migrate_cancel", json!({}))
    }

    /// Goes on from pre-switchover: QEMU sends the device state and ends. Refused in any other state.
    pub fn migrate_continue(&self) -> Result<(), QmpError> {
        self.tell("migrate-continue", json!({ "state": "pre-switchover" }))
    }

    /// Makes the guest's network cards announce themselves, so that switches learn where the guest is now: five
    /// frames over about 0.8 s. Returns at once.
    pub fn announce_self(&self) -> Result<(), QmpError> {
        self.tell("announce-self", json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 }))
    }

    /// Where the first processor is among QEMU's objects.
    pub(crate) fn first_processor(&self) -> Result<String, QmpError> {
        let answer = self.ask("query-cpus-fast", json!({}))?;
        let at = answer[0]["qom-path"].as_str().ok_or_else(|| unexpected("query-cpus-fast", &answer))?;
        Ok(at.to_string())
    }

    /// The properties of one of QEMU's objects: name and type, in QEMU's words.
    pub(crate) fn qom_properties(&self, path: &str) -> Result<Vec<(String, String)>, QmpError> {
        let answer = self.ask("qom-list", json!({ "path": path }))?;
        let listed = answer.as_array().ok_or_else(|| unexpected("qom-list", &answer))?;
        let word = |item: &Value, key: &str| item[key].as_str().map(str::to_string);
        Ok(listed.iter().filter_map(|item| Some((word(item, "name")?, word(item, "type")?))).collect())
    }

    /// One property of one of QEMU's objects.
    pub(crate) fn qom_get(&self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.ask("qom-get", json!({ "path": path, "property": property }))
    }

    /// Sets one property of one of QEMU's objects.
    pub(crate) fn qom_set(&self, path: &str, property: &str, value: Value) -> Result<(), QmpError> {
        self.tell("qom-set", json!({ "path": path, "property": property, "value": value }))
    }

    /// Makes an object, of `arguments` that have its `qom-type` and its `id`, within `timeout`.
    pub(crate) fn object_add(&self, arguments: Value, timeout: Duration) -> Result<(), QmpError> {
        self.execute("object-add", arguments, timeout).map(drop)
    }

    /// Removes an object that nothing uses.
    pub(crate) fn object_del(&self, id: &str) -> Result<(), QmpError> {
        self.tell("object-del", json!({ "id": id }))
    }

    /// Plugs a device in, of `arguments` that have its `driver`.
    pub(crate) fn device_add(&self, arguments: Value) -> Result<(), QmpError> {
        self.tell("device_add", arguments)
    }

    /// Asks for a device to be unplugged. The guest decides, and `DEVICE_DELETED` tells.
    pub(crate) fn device_del(&self, id: &str) -> Result<(), QmpError> {
        self.tell("device_del", json!({ "id": id }))
    }

    /// The devices that are memory, as QEMU tells of them.
    pub(crate) fn query_memory_devices(&self) -> Result<Value, QmpError> {
        self.ask("query-memory-devices", json!({}))
    }

    fn ask(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute(command, arguments, ANSWER_TIMEOUT)
    }

    fn tell(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.ask(command, arguments).map(drop)
    }
}

/// The largest downtime limit QEMU accepts: 2000 s.
const DOWNTIME_LIMIT_MS: u64 = 2_000_000;

/// The largest bandwidth that every QEMU accepts and that survives its inner conversions: 2^53 bytes a second.
const BANDWIDTH_LIMIT: u64 = 1 << 53;

fn unexpected(command: &str, answer: &Value) -> QmpError {
    let what: String = answer.to_string().chars().take(200).collect();
    QmpError::Unexpected { command: command.to_string(), what }
}

/// The address in what a person would read: `Host virtual address for 0x100000000 (m-dimm) is 0x7f3a40000000`.
fn host_address_in(words: &str) -> Option<u64> {
    let told = words.trim().strip_prefix("Host virtual address for ")?.rsplit_once(" is 0x")?.1;
    u64::from_str_radix(told, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_complaints_are_none() {
        let table = [
            ("Host virtual address for 0x100000000 (a-dimm) is 0x7f3a40000000\r\n", Some(0x7f3a_4000_0000)),
            ("Host virtual address for 0x0 (ram0) is 0x1", Some(1)),
            ("No memory is mapped at address 0x100000000\r\n", None),
            ("Memory at address 0xfee00000 is not RAM\r\n", None),
            ("Host virtual address for 0x0 (ram0) is 0xg", None),
            ("", None),
        ];
        for (words, address) in table {
            assert_eq!(host_address_in(words), address, "{words}");
        }
    }
}
