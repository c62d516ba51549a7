//! What the stopped thread runs: a loop that makes the calls it is given, and finds its own way back. Pure.
//!
//! The block lies on the thread's stack, below the 128 bytes under the stack pointer that belong to whatever function
//! runs there (the red zone):
//!
//! ```text
//!    0  number of the next call, or -1: none
//!    8  its arguments: three, and one that is not used
//!   40  the thread's signal mask
//!   48  flags, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 … r15, rsp
//!  184  room for what arguments point to
//! ```
//!
//! Source: System V ABI, AMD64 supplement (red zone); Intel SDM volume 2.

use libc::user_regs_struct as Registers;

/// Bytes of the block; a multiple of 64, so that it does not share a cache line with what lies above.
pub(super) const BLOCK: u64 = 256;
/// Where its arguments begin.
pub(super) const ARGUMENTS: u64 = 8;
/// Where there is room for what arguments point to, and how many words.
pub(super) const ROOM: u64 = 184;
pub(super) const ROOM_WORDS: usize = ((BLOCK - ROOM) / 8) as usize;
/// No call.
pub(super) const NONE: u64 = u64::MAX;

/// Bytes that the code and the address behind it take.
pub(super) const CODE_SIZE: u64 = 112;
const _: () = assert!(CODE.len() + 8 <= CODE_SIZE as usize);

/// The code; r12 has the address of the block. The eight bytes behind it are the address to go back to.
#[rustfmt::skip]
const CODE: [u8; 102] = [
    // next:
    0x49, 0x8b, 0x04, 0x24,                         // mov rax, [r12]       the number of the call
    0x49, 0xc7, 0x04, 0x24, 0xff, 0xff, 0xff, 0xff, // mov qword [r12], -1  is asked for once
    0x48, 0x85, 0xc0, 0x78, 0x18,                   // test rax, rax; js leave
    0x49, 0x8b, 0x7c, 0x24, 0x08,                   // mov rdi, [r12 + 8]
    0x49, 0x8b, 0x74, 0x24, 0x10,                   // mov rsi, [r12 + 16]
    0x49, 0x8b, 0x54, 0x24, 0x18,                   // mov rdx, [r12 + 24]
    0x4d, 0x8b, 0x54, 0x24, 0x20,                   // mov r10, [r12 + 32]
    0x0f, 0x05, 0xeb, 0xd7,                         // syscall; jmp next
    // leave: rt_sigprocmask(SIG_SETMASK, the mask, nowhere, 8)
    0xb8, 0x0e, 0x00, 0x00, 0x00,                   // mov eax, 14
    0xbf, 0x02, 0x00, 0x00, 0x00,                   // mov edi, 2
    0x49, 0x8d, 0x74, 0x24, 0x28, 0x31, 0xd2,       // lea rsi, [r12 + 40]; xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, 0x0f, 0x05, // mov r10d, 8; syscall
    // A signal that comes from here on is handled below rsp, where only what was popped already lies.
    0x49, 0x8d, 0x64, 0x24, 0x30, 0x9d,             // lea rsp, [r12 + 48]; popfq
    0x58, 0x5b, 0x59, 0x5a, 0x5e, 0x5f, 0x5d,       // pop rax, rbx, rcx, rdx, rsi, rdi, rbp
    0x41, 0x58, 0x41, 0x59, 0x41, 0x5a, 0x41, 0x5b, // pop r8, r9, r10, r11
    0x41, 0x5c, 0x41, 0x5d, 0x41, 0x5e, 0x41, 0x5f, // pop r12, r13, r14, r15
    0x5c, 0xff, 0x25, 0x00, 0x00, 0x00, 0x00,       // pop rsp; jmp [the address behind this]
];

/// Where the block of a thread with this stack pointer lies.
pub(super) fn block_below(stack: u64) -> u64 {
    const RED_ZONE: u64 = 128;
    stack.saturating_sub(RED_ZONE + BLOCK) & !63
}

/// The code as words, with the address to go back to.
pub(super) fn code(back: u64) -> Vec<u64> {
    let mut bytes = CODE.to_vec();
    bytes.extend(back.to_le_bytes());
    bytes.resize(CODE_SIZE as usize, 0);
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// The block as words, with no call in it.
pub(super) fn block(back: &Registers, mask: u64) -> Vec<u64> {
    let r = back;
    let mut words = vec![NONE, 0, 0, 0, 0, mask];
    words.extend([r.eflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp]);
    words.extend([r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rsp]);
    words.resize((BLOCK / 8) as usize, 0);
    words
}

/// The registers with which the thread runs the code. That it is in no system call keeps the kernel from beginning
/// the interrupted one again before its time.
pub(super) fn entry(saved: &Registers, code: u64, block: u64) -> Registers {
    Registers { rip: code, r12: block, orig_rax: NONE, ..*saved }
}

/// Where and with what the thread goes on: as the kernel itself would resume it, with an interrupted system call
/// begun again.
///
/// Source: Linux `arch/x86/kernel/signal.c`, `arch_do_signal_or_restart`.
pub(super) fn resumed(saved: &Registers) -> Registers {
    /// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND.
    const AGAIN: [i64; 3] = [-512, -513, -514];
    /// ERESTART_RESTARTBLOCK: by the call that knows how much time is left.
    const REST: i64 = -516;
    const SYS_RESTART_SYSCALL: u64 = 219;
    /// Bytes of the `syscall` instruction.
    const LENGTH: u64 = 2;
    let in_call = saved.orig_rax as i64 >= 0;
    match saved.rax as i64 {
        why if in_call && AGAIN.contains(&why) => {
            Registers { rax: saved.orig_rax, rip: saved.rip - LENGTH, orig_rax: NONE, ..*saved }
        }
        REST if in_call => Registers { rax: SYS_RESTART_SYSCALL, rip: saved.rip - LENGTH, orig_rax: NONE, ..*saved },
        _ => Registers { orig_rax: NONE, ..*saved },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(rax: i64, orig_rax: i64) -> Registers {
        let word = |n: u64| n * 0x1111;
        Registers {
            r15: word(15),
            r14: word(14),
            r13: word(13),
            r12: word(12),
            rbp: word(5),
            rbx: word(3),
            r11: word(11),
            r10: word(10),
            r9: word(9),
            r8: word(8),
            rax: rax as u64,
            rcx: word(2),
            rdx: word(4),
            rsi: word(6),
            rdi: word(7),
            orig_rax: orig_rax as u64,
            rip: 0x1002,
            cs: 0x33,
            eflags: 0x246,
            rsp: 0x7ff0,
            ss: 0x2b,
            fs_base: 1,
            gs_base: 2,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }

    #[test]
    fn an_interrupted_call_is_begun_again() {
        let table = [
            ((0, -1), (0, 0x1002)),
            ((-514, -1), (-514, 0x1002)),
            ((5, 271), (5, 0x1002)),
            ((-4, 271), (-4, 0x1002)),
            ((-512, 0), (0, 0x1000)),
            ((-513, 7), (7, 0x1000)),
            ((-514, 271), (271, 0x1000)),
            ((-516, 230), (219, 0x1000)),
        ];
        for ((rax, orig_rax), (then, rip)) in table {
            let back = resumed(&registers(rax, orig_rax));
            assert_eq!((back.rax as i64, back.rip, back.orig_rax), (then, rip, NONE), "{rax} {orig_rax}");
            assert_eq!((back.rbx, back.rsp), (0x3333, 0x7ff0));
        }
    }

    #[test]
    fn the_block_lies_below_the_red_zone_and_has_what_the_code_pops() {
        let at = block_below(0x7ff8);
        assert!(at + BLOCK + 128 <= 0x7ff8 && at.is_multiple_of(64), "{at:#x}");
        assert_eq!(block_below(100), 0);
        let words = block(&registers(1, -1), 0xaa);
        assert_eq!((words.len() * 8) as u64, BLOCK);
        assert_eq!((words[0], words[5], words[6], words[7]), (NONE, 0xaa, 0x246, 1));
        assert_eq!(words[14], 8 * 0x1111);
        assert_eq!((ROOM / 8) as usize, 23);
        assert_eq!((words[21], words[22]), (15 * 0x1111, 0x7ff0));
    }

    #[test]
    fn the_address_to_go_back_to_is_right_behind_the_code() {
        let words = code(0x1122_3344_5566_7788);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes.len() as u64, CODE_SIZE);
        assert_eq!(bytes[CODE.len()..CODE.len() + 8], 0x1122_3344_5566_7788u64.to_le_bytes());
        // jmp [rip + 0] is the last instruction.
        assert_eq!(CODE[CODE.len() - 6..], [0xff, 0x25, 0, 0, 0, 0]);
    }
}
