// The way in: a token that is good once becomes a cookie. One that stands behind the # is taken at once.

const form = document.getElementById("login");
const field = document.getElementById("token");
const why = document.getElementById("why");

async function enter(token) {
  why.textContent = "";
  let answer;
  try {
    answer = await fetch("/dashboard/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token }),
    });
  } catch {
    why.textContent = "The daemon does not answer.";
    return;
  }
  if (answer.ok) {
    location.replace("/dashboard/");
    return;
  }
  const problem = await answer.json().catch(() => ({}));
  why.textContent = problem.detail ?? `The daemon answered ${answer.status}.`;
  field.value = "";
  field.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(field.value);
});

function given() {
  const token = location.hash.slice(1);
  if (!token) return false;
  // Used up or not, it does not stay in the history.
  history.replaceState(null, "", location.pathname);
  enter(token);
  return true;
}

// Also where the page was open before the URL was pasted.
addEventListener("hashchange", given);
if (!given()) field.focus();
