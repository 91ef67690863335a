// What is going to happen, as the server puts it: rows of facts, warnings, or what stands in the way.
window.yuegp.plan = (element, props, server, trigger, watch) => {
  const { el } = window.yuegp;
  const root = element.querySelector(".y-plan");
  const render = () => {
    const plan = props.value || {};
    const rows = (plan.rows || []).map((row) => [el("dt", { text: row.name }), el("dd", { text: row.text })]).flat();
    const open = root.querySelector("details[open]") !== null;
    const details = el("details", { hidden: !(plan.details || []).length, open }, el("summary", { text: props.say.details }),
      el("ul", { class: "y-notes" }, ...(plan.details || []).map((text) => el("li", { text }))));
    root.replaceChildren(
      el("p", { class: "y-faint", text: plan.empty || "", hidden: !plan.empty }),
      el("dl", { hidden: !rows.length }, ...rows),
      details,
      el("ul", { class: "y-notes" }, ...(plan.warnings || []).map((text) => el("li", { text }))),
      el("p", { class: "y-bad", id: "plan-error", role: "alert", text: plan.error || "", hidden: !plan.error }));
  };
  watch("value", render);
  render();
};
