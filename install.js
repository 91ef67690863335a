// Sets everything up.
module.exports = {
  requires: { bundle: "ai" },
  run: [{ method: "shell.run", params: { message: "python launch.py install" } }],
}
