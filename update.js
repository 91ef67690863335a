// Fetches the newest version and what it needs.
module.exports = {
  run: [{ method: "shell.run", params: { message: "python launch.py update" } }],
}
