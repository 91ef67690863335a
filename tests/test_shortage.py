"""Running out of memory, in the words of everybody who may run out of it; and what only sounds like it."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from yuegp import shortage as room
from yuegp.cli.main import main
from yuegp.errors import DeviceError, ModelError, RequestError
from yuegp.shortage import named, shortage, shortage_in


def windows(code: int, text: str = "") -> OSError:
    error = OSError(errno.EINVAL, text)
    error.winerror = code
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        windows(1455, "Die Auslagerungsdatei ist zu klein, um diesen Vorgang durchzuführen"),
        windows(8), windows(14), windows(1450),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
        OSError("页面文件太小，无法完成操作。 (os error 1455)"),
        SafetensorError("El archivo de paginación es demasiado pequeño para completar la operación. (os error 1455)"),
        SafetensorError("I/O error: Cannot allocate memory (os error 12)"),
        RuntimeError(r"[enforce fail at ..\c10\core\impl\alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough "
                     "memory: you tried to allocate 26214400 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                     "tried to allocate 116813856768 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("unable to mmap 4976698672 bytes from file </m/model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("Couldn't open file mapping <C:\\m\\model.safetensors>, error code: <1455>"),
        RuntimeError("bad allocation"),
        RuntimeError("std::bad_alloc"),
        ImportError("DLL load failed while importing _C: The paging file is too small for this operation to complete."),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:50],
)  # fmt: skip
def test_ram(error: BaseException) -> None:
    assert shortage(error) == "RAM"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7 GiB"),
        torch.OutOfMemoryError("HIP out of memory. Tried to allocate 256.00 MiB (GPU 0; 7.98 GiB total capacity)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("CUDA runtime error cudaErrorMemoryAllocation (2)"),
        RuntimeError("hipErrorOutOfMemory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("miopenStatusAllocFailed"),
        RuntimeError("Error out of memory at line 380 in file /src/csrc/ops.cu"),
    ],
    ids=lambda error: str(error)[:50],
)
def test_a_card(error: BaseException) -> None:
    assert shortage(error) == "card"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("Error opening '/songs/Out Of Memory.flac': Format not recognised."),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/songs/out of memory.txt"),
        OSError(errno.ENOSPC, "No space left on device"),
        windows(5), windows(32),
        RequestError("The lyrics say: out of memory."),
        DeviceError("No CUDA card can be used here.", ""),
        SafetensorError("Error while deserializing header: HeaderTooLarge"),
        SafetensorError("Exec format error (os error 8)"),
    ],
    ids=lambda error: str(error)[:50],
)  # fmt: skip
def test_other_things(error: Exception) -> None:
    assert shortage(error) == "" and named(error) is error


def test_a_cause_counts_and_what_was_taken_for_damage_is_told_as_what_it_is() -> None:
    damage = ModelError("model.safetensors cannot be read: …", "Download this file again.")
    damage.__cause__ = OSError("… (os error 1455)")
    told = named(damage, "while a model was read")
    assert isinstance(told, DeviceError) and "ran out of memory (RAM) while a model was read" in told.what
    ours = DeviceError("The card has no room.", "Choose fewer bits.")
    ours.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert shortage(ours) == "card" and named(ours) is ours


def test_on_windows_the_hint_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.sys, "platform", "win32")
    told = named(windows(1455))
    assert isinstance(told, DeviceError) and "Automatically manage paging file size" in told.hint


def test_what_another_process_printed() -> None:
    assert shortage_in("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB") == "card"
    assert shortage_in("Traceback (most recent call last):\nMemoryError") == "RAM"
    assert shortage_in("KeyError: 'a'") == ""


def test_the_command_line_says_it_in_two_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("yuegp.cli.songs.songs", full)
    assert main(["songs"]) == DeviceError.exit_code
    assert capsys.readouterr().err.startswith("The computer ran out of memory (RAM).\nClose other programs")
