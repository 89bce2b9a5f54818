// A box dragged over the picture: the corners go to Python as shares of its sides.
const pad = element.querySelector(".pad");
let start = null;

const place = (event) => {
  const area = pad.getBoundingClientRect();
  const share = (at, from, size) => Math.min(1, Math.max(0, (at - from) / size));
  return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
};

const corners = (event) => {
  const [x, y] = place(event);
  return [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
};

element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".pad")) return;
  event.preventDefault();
  start = place(event);
  element.setPointerCapture(event.pointerId);
});

element.addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x1, y1, x2, y2] = corners(event);
  const box = element.querySelector(".box").style;
  box.display = "block";
  [box.left, box.top, box.width, box.height] = [x1, y1, x2 - x1, y2 - y1].map((share) => `${100 * share}%`);
});

element.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = corners(event);
  start = null;
  if (box[0] < box[2] && box[1] < box[3]) trigger("select", { box });
});
