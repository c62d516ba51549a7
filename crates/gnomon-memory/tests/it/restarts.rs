//! A daemon that dies, a holder that dies, and what is found again.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use gnomon_memory::{Block, BlockId, GroupName, HolderError, Opening, PageKind, Staging, StagingError, blocks_of};
use gnomon_terms::{Bytes, ErrorKind};
use rustix::{
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, recv, sendmsg, socket_with,
    },
    process::{Pid, Signal, kill_process},
};

use crate::host::{MIB, PATIENCE, TestHost, end, program, wait_for, web};

/// How long a holder that was stopped is waited for. One that was not and is slower than this is replaced, which no test
/// here minds.
const HANGS: Duration = Duration::from_secs(3);

fn inodes<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> BTreeSet<u64> {
    blocks.into_iter().map(Block::inode).collect()
}

/// What a holder has.
fn held(pid: i32) -> Vec<Block> {
    blocks_of(pid).expect("looked")
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process"), signal).expect("sent");
}

#[test]
fn what_is_staged_outlives_the_daemon() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 3), (Bytes(2 << 20), 1)]);
    let staged = inodes(&held(host.holder()));
    assert_eq!(staged.len(), 4);
    host.kill();
    host.open();
    let accounts = host.balanced().host;
    assert_eq!((accounts.staged.blocks, accounts.staged.bytes), (4, Bytes(5 << 20)), "before anything is wanted");
    let taken = host.take_web(Bytes(5 << 20));
    assert_eq!(inodes(taken.reserved.blocks().map(|block| &**block)), staged);
}

#[test]
fn a_daemon_that_is_killed_while_it_stages_leaves_whole_blocks_and_no_others() {
    for kept in [0, 1, 5] {
        let mut host = TestHost::closed();
        let mut daemon = daemon(&host, 64);
        let holder = wait_for(|| holder_of(&host).filter(|pid| held(*pid).len() >= kept));
        daemon.kill().expect("killed");
        daemon.wait().expect("gone");
        host.open();
        let found = held(holder);
        assert!(found.len() >= kept && found.iter().all(Block::is_whole), "{found:?}");
        let accounts = host.balanced().host;
        assert_eq!((accounts.staged.blocks, accounts.created.blocks), (found.len() as u64, found.len() as u64));
    }
}

/// A daemon of its own that stages so many blocks.
fn daemon(host: &TestHost, blocks: u32) -> Child {
    let mut command = Command::new(program());
    command.arg("stage").arg(host.socket()).arg(blocks.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started")
}

/// The process that listens at the host's socket.
fn holder_of(host: &TestHost) -> Option<i32> {
    let socket = dial(&host.socket())?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

fn dial(path: &Path) -> Option<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("made");
    connect(&socket, &SocketAddrUnix::new(path).expect("a path")).ok()?;
    Some(socket)
}

#[test]
fn what_is_at_a_guest_is_not_at_the_holder_and_is_found_at_the_guest() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let assigned = host.take_web(MIB).reserved.assign("vm").expect("assigned").remove(0);
    assert!(!inodes(&held(host.holder())).contains(&assigned.inode()), "it left before anybody had it");
    // This process is the QEMU: it has the block open, and is asked for it.
    let at_guest = held(std::process::id() as i32);
    let at_guest = at_guest.into_iter().find(|block| block.inode() == assigned.inode()).expect("it has it");
    host.kill();
    host.open();
    assert!(host.balanced().host.assigned.blocks == 0, "nobody has said so yet");
    let again = host.assigned_again("vm", at_guest).expect("on the books");
    assert_eq!(host.assigned_to("vm"), [(assigned.id(), MIB)]);
    assert_eq!(host.balanced().host.assigned.blocks, 1);
    host.returned(again.id()).expect("returned");
    assert_eq!(assigned.allocated().expect("told"), Bytes(0));
}

#[test]
fn a_block_that_is_at_a_guest_after_all_is_given_to_nobody() {
    let host = TestHost::new();
    host.stage(&[(MIB, 1)]);
    let holder = host.holder();
    let seen = held(holder).remove(0);
    let id = seen.id();
    host.set_target(&web(), &[]).expect("a target");
    // Whether the worker evicts it first or not, it is never on a shelf and at a guest.
    match host.assigned_again("vm", seen) {
        Ok(block) => {
            assert_eq!(host.assigned_to("vm"), [(id, MIB)]);
            host.returned(block.id()).expect("returned");
        }
        Err(error) => assert!(matches!(error, StagingError::Imbalance(_)), "{error}"),
    }
    // The holder has forgotten it, or is about to.
    wait_for(|| held(holder).iter().all(|block| block.id() != id).then_some(()));
    assert_eq!(host.take_web(MIB).hit, Bytes(0));
}

#[test]
fn a_killed_holder_is_replaced_and_given_what_it_had() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 3)]);
    let (first, reserved) = (host.holder(), host.take_web(MIB));
    signal(first, Signal::KILL);
    let second = wait_for(|| host.holder_pid().filter(|pid| *pid != first && held(*pid).len() >= 3));
    drop(reserved);
    host.kill();
    host.open();
    assert!(host.balanced().host.staged.blocks >= 3);
    assert_eq!(host.holder(), second);
}

#[test]
fn a_daemon_and_a_holder_that_are_both_killed_leave_nothing() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let holder = host.holder();
    host.kill();
    end(holder);
    wait_for(|| dial(&host.socket()).is_none().then_some(()));
    host.open();
    assert_eq!(host.balanced().host.created.blocks, 0);
    host.stage(&[(MIB, 1)]);
    assert_ne!(host.holder(), holder);
}

#[test]
fn a_holder_that_does_not_answer_is_ended_before_a_block_goes_to_a_guest() {
    let mut host = TestHost::closed();
    host.patience = HANGS;
    host.open();
    host.stage(&[(MIB, 2)]);
    let (holder, reserved) = (host.holder(), host.take_web(MIB).reserved);
    signal(holder, Signal::STOP);
    let assigned = reserved.assign("vm").expect("assigned all the same");
    let alive = blocks_of(holder).unwrap_or_default();
    assert!(!inodes(&alive).contains(&assigned[0].inode()), "nobody else has it");
    host.vm_ended("vm").expect("ended");
}

#[test]
fn what_a_holder_has_that_does_not_answer_is_taken_over() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let (holder, staged) = (host.holder(), inodes(&held(host.holder())));
    host.kill();
    host.patience = HANGS;
    signal(holder, Signal::STOP);
    host.open();
    assert_eq!(host.balanced().host.staged.blocks, 2);
    let second = wait_for(|| host.holder_pid().filter(|pid| *pid != holder && held(*pid).len() == 2));
    assert_eq!(inodes(&held(second)), staged);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    host.busy = Duration::from_millis(200);
    let error = Staging::open(host.opening()).expect_err("there is one");
    assert!(matches!(error, StagingError::Holder(HolderError::Busy { .. })), "{error}");
    assert_eq!(error.kind(), ErrorKind::Refused);
    host.take_web(MIB).reserved.assign("vm").expect("assigned");
    assert!(host.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == 2));
}

#[test]
fn what_was_staged_for_a_group_that_is_gone_goes_to_the_host() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let holder = host.holder();
    host.kill();
    let opening: Opening = host.opening();
    let staging = Staging::open(opening).expect("opened");
    let accounts = staging.accounts().host;
    assert_eq!((accounts.staged.blocks, accounts.released.blocks), (0, 2));
    assert_eq!(held(holder).len(), 0);
    staging.check().expect("balanced");
}

#[test]
fn a_block_that_is_not_whole_any_more_goes_to_the_host() {
    let mut host = TestHost::new();
    host.stage(&[(MIB, 2)]);
    let broken = held(host.holder()).remove(0);
    host.kill();
    broken.release().expect("somebody punched it");
    host.open();
    let accounts = host.balanced().host;
    assert_eq!((accounts.created.blocks, accounts.staged.blocks, accounts.released.blocks), (2, 1, 1));
    assert!(held(host.holder()).iter().all(|block| block.id() != broken.id()));
}

#[test]
fn strangers_get_nothing_from_the_holder() {
    let host = TestHost::closed();
    let holder = Command::new(program()).arg("hold").arg(host.socket()).stdout(Stdio::piped()).spawn();
    let mut holder = holder.expect("started");
    holder.stdout.take().expect("piped").read_exact(&mut [0]).expect("it listens");
    let socket = dial(&host.socket()).expect("connected");
    let loose = Block::create(&web(), BlockId(7), MIB, PageKind::Small).expect("made");
    let file = File::open("/dev/null").expect("opened");
    let keep = |id: u8| [b'G', b'N', b'H', b'M', 1, 0, 2, 0, id, 0, 0, 0, 0, 0, 0, 0];
    let (done, strange) = ([128, 0], [131, 0]);
    assert_eq!(say(&socket, b"x", &[]), strange, "no packet");
    assert_eq!(say(&socket, &[1; 100], &[]), strange, "too long");
    assert_eq!(say(&socket, &keep(7), &[]), strange, "no descriptor");
    assert_eq!(say(&socket, &keep(7), &[file.as_fd()]), strange, "no block");
    assert_eq!(say(&socket, &keep(7), &[loose.as_fd()]), strange, "not whole");
    loose.populate(None, MIB, &mut || true).expect("populated");
    assert_eq!(say(&socket, &keep(8), &[loose.as_fd()]), strange, "another name");
    assert_eq!(say(&socket, &keep(7), &[loose.as_fd(), file.as_fd()]), strange, "two descriptors");
    assert_eq!(say(&socket, &keep(7), &[loose.as_fd()]), done);
    assert_eq!(say(&socket, &keep(7), &[loose.as_fd()]), strange, "held already");
    assert_eq!(held(holder.id() as i32).len(), 1);
    holder.kill().expect("killed");
    holder.wait().expect("gone");
}

/// Says something with descriptors beside it; returns the kind of the answer.
fn say(socket: &OwnedFd, packet: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> [u8; 2] {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[std::io::IoSlice::new(packet)], &mut beside, SendFlags::NOSIGNAL).expect("said");
    let mut answer = [0; 16];
    let (_, length) = recv(socket, &mut answer[..], RecvFlags::empty()).expect("answered");
    assert_eq!(length, 16);
    [answer[6], answer[7]]
}

#[test]
fn a_holder_that_holds_nothing_for_nobody_ends_and_a_second_one_is_not_needed() {
    let host = TestHost::closed();
    let start = |how: &str| Command::new(program()).arg(how).arg(host.socket()).stdout(Stdio::piped()).spawn();
    let brief = start("hold-briefly").expect("started").wait().expect("ended");
    assert!(brief.success() && !host.socket().exists(), "it takes its socket with it");
    let mut first = start("hold").expect("started");
    first.stdout.take().expect("piped").read_exact(&mut [0]).expect("it listens");
    let second = start("hold").expect("started").wait().expect("ended");
    assert!(!second.success());
    assert!(dial(&host.socket()).is_some(), "the first goes on");
    first.kill().expect("killed");
    first.wait().expect("gone");
}

#[test]
fn a_holder_that_cannot_be_started_does_not_keep_memory_from_being_staged() {
    let mut host = TestHost::closed();
    let command = gnomon_memory::HolderCommand::new(host.socket(), "/nonexistent/holder", ["hold"]);
    let web_limits = crate::host::group_limits();
    let opening = Opening::new(command, host.limits).gauge(host.gauge.clone()).group(web(), web_limits);
    let staging = Staging::open(opening).expect("opened");
    staging.set_target(&web(), &[(MIB, 2)]).expect("a target");
    assert!(staging.wait_until(PATIENCE, |accounts| accounts.host.staged.blocks == 2));
    assert_eq!(staging.holder_pid(), None);
    drop(staging);
    host.open();
    assert_eq!(host.balanced().host.created.blocks, 0, "and nothing of it is found again");
}

#[test]
fn groups_are_told_apart_after_a_restart() {
    let mut host = TestHost::new();
    let other = GroupName::new("other").expect("a name");
    host.add_group(other.clone(), crate::host::group_limits()).expect("added");
    host.set_target(&other, &[(MIB, 1)]).expect("a target");
    host.stage_and(&[(MIB, 2)], 3);
    host.kill();
    let opening = host.opening().group(web(), crate::host::group_limits()).group(other, crate::host::group_limits());
    let staging = Staging::open(opening).expect("opened");
    let staged: Vec<(String, u64)> =
        staging.accounts().groups.iter().map(|(name, group)| (name.to_string(), group.staged.blocks)).collect();
    assert_eq!(staged, [("other".to_owned(), 1), ("web".to_owned(), 2)]);
}
