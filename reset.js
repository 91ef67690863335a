// Removes what was installed; songs and models stay.
module.exports = {
  run: [{ method: "shell.run", params: { message: "python launch.py reset" } }],
}
