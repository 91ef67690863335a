// Starts the page, waits for the one line with its address, and hands that to the menu.
module.exports = {
  daemon: true,
  run: [
    {
      method: "shell.run",
      params: {
        message: "python launch.py ui --no-browser",
        on: [{ event: "/(http:\\/\\/127\\.0\\.0\\.1:[0-9]+)/", done: true }],
      },
    },
    { method: "local.set", params: { url: "{{input.event[1]}}" } },
  ],
}
