//! `execl`, `execlp` and `execle`: their arguments are gathered here, because Rust cannot define a variadic function.
//!
//! Each entry point stores the argument registers behind the first into memory and passes on where they and the
//! arguments on the stack are.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(unreachable_pub)]

use std::arch::naked_asm;
use std::mem::size_of;

use libc::{c_char, c_int};

use crate::hooks;
use crate::{exec, sys};

/// Registers that carry arguments behind the first.
#[cfg(target_arch = "x86_64")]
const REGISTERS: usize = 5;
#[cfg(target_arch = "aarch64")]
const REGISTERS: usize = 7;

macro_rules! gather {
    ($name:ident, $then:path) => {
        /// # Safety
        /// As for the C function.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                "sub rsp, 56",
                "mov [rsp], rsi",
                "mov [rsp + 8], rdx",
                "mov [rsp + 16], rcx",
                "mov [rsp + 24], r8",
                "mov [rsp + 32], r9",
                "mov rsi, rsp",
                "lea rdx, [rsp + 64]",
                "call {then}",
                "add rsp, 56",
                "ret",
                then = sym $then,
            )
        }

        /// # Safety
        /// As for the C function.
        #[cfg(target_arch = "aarch64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                "stp x29, x30, [sp, #-80]!",
                "mov x29, sp",
                "stp x1, x2, [sp, #16]",
                "stp x3, x4, [sp, #32]",
                "stp x5, x6, [sp, #48]",
                "str x7, [sp, #64]",
                "add x1, sp, #16",
                "add x2, sp, #80",
                "bl {then}",
                "ldp x29, x30, [sp], #80",
                "ret",
                then = sym $then,
            )
        }
    };
}

gather!(execl, gathered_execl);
gather!(execlp, gathered_execlp);
gather!(execle, gathered_execle);

type Arguments = *const *const c_char;

unsafe extern "C" fn gathered_execl(path: *const c_char, registers: Arguments, stack: Arguments) -> c_int {
    // SAFETY: what the entry point has gathered.
    unsafe { with_list(registers, stack, |argv, _| hooks::execve(path, argv, exec::environment())) }
}

unsafe extern "C" fn gathered_execlp(file: *const c_char, registers: Arguments, stack: Arguments) -> c_int {
    // SAFETY: what the entry point has gathered.
    unsafe { with_list(registers, stack, |argv, _| hooks::execvpe(file, argv, exec::environment())) }
}

unsafe extern "C" fn gathered_execle(path: *const c_char, registers: Arguments, stack: Arguments) -> c_int {
    // SAFETY: what the entry point has gathered; the environment stands behind the null.
    unsafe { with_list(registers, stack, |argv, envp| hooks::execve(path, argv, envp.cast())) }
}

/// Makes the list of arguments that ends with null, and gives it and the argument behind the null to `exec`.
///
/// # Safety
/// The arguments end with null; behind it there is one more or readable stack.
unsafe fn with_list(registers: Arguments, stack: Arguments, exec: impl Fn(Arguments, *const c_char) -> c_int) -> c_int {
    const ON_STACK: usize = 256;
    let argument = |index: usize| {
        // SAFETY: called up to one behind the null that ends the arguments.
        unsafe { if index < REGISTERS { *registers.add(index) } else { *stack.add(index - REGISTERS) } }
    };
    let mut count = 0;
    while !argument(count).is_null() {
        count += 1;
    }
    let fill = |list: *mut *const c_char| {
        for index in 0..=count {
            // SAFETY: the list has room for count + 1.
            unsafe { list.add(index).write(argument(index)) };
        }
        exec(list.cast_const(), argument(count + 1))
    };
    let mut list = [std::ptr::null(); ON_STACK];
    if count < ON_STACK {
        return fill(list.as_mut_ptr());
    }
    let size = (count + 1) * size_of::<*const c_char>();
    let Some(area) = sys::map(size) else {
        sys::set_errno(libc::ENOMEM);
        return -1;
    };
    let result = fill(area.cast());
    // SAFETY: exec has failed, so the list is used no more.
    unsafe { sys::unmap(area, size) };
    result
}
