@echo off
rem Starts yuegp on Windows: finds a Python and hands over to launch.py, which does everything else.
setlocal
chcp 65001 >nul 2>nul
set "launch=%~dp0launch.py"
py -3 -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul
if not errorlevel 1 (
    py -3 "%launch%" %*
    goto done
)
rem The name python may lead to a page of the Microsoft Store; asking for the version tells.
python -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul
if not errorlevel 1 (
    python "%launch%" %*
    goto done
)
uv --version >nul 2>nul
if not errorlevel 1 (
    if not defined UV_PYTHON_INSTALL_DIR set "UV_PYTHON_INSTALL_DIR=%~dp0.launch\python"
    uv run --no-cache --no-project --python 3.12 "%launch%" %*
    goto done
)
echo yuegp needs Python, and none was found.
echo Install it with: winget install Python.Python.3.12
echo Then start again.
pause
exit /b 4

:done
set "code=%errorlevel%"
rem Started by a double click, the window would close on what was said.
if not "%code%"=="0" if "%~1"=="" pause
exit /b %code%
