// The menu in Pinokio. Everything is done by launch.py; these scripts only call it.
module.exports = {
  version: "5.0",
  title: "yuegp",
  description: "Whole songs from lyrics and tags, with the open model YuE, on one consumer graphics card",
  icon: "icon.svg",
  menu: async (kernel, info) => {
    for (const [script, text] of [["install.js", "Installing"], ["update.js", "Updating"], ["reset.js", "Resetting"]]) {
      if (info.running(script)) {
        return [{ default: true, icon: "fa-solid fa-spinner", text, href: script }]
      }
    }
    if (info.running("start.js")) {
      const { url } = info.local("start.js") || {}
      const terminal = { icon: "fa-solid fa-terminal", text: "Terminal", href: "start.js" }
      return url
        ? [{ default: true, icon: "fa-solid fa-music", text: "Open Web UI", href: url }, terminal]
        : [{ ...terminal, default: true }]
    }
    // yuegp.json is written when everything is in place, so a set-up that was broken off counts as none
    if (!info.exists(".venv/yuegp.json") && !info.exists(".venv-yuegp/yuegp.json")) {
      return [{ default: true, icon: "fa-solid fa-plug", text: "Install", href: "install.js" }]
    }
    return [
      { default: true, icon: "fa-solid fa-power-off", text: "Start", href: "start.js" },
      { icon: "fa-solid fa-folder-open", text: "Output Files", href: "songs", fs: true },
      { icon: "fa-solid fa-arrows-rotate", text: "Update", href: "update.js" },
      {
        icon: "fa-regular fa-circle-xmark",
        text: "Reset",
        href: "reset.js",
        confirm: "This removes what was installed. Your songs and models stay. Go on?",
      },
    ]
  },
}
