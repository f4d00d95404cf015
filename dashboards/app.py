"""Navigation only: which pages there are, in which order, and what stands around each of them.

Streamlit runs this file for every viewer and every rerun; it imports pages and calls one. Nothing is read here.
"""

import streamlit as st

from dashboards import theme
from dashboards.views import experts, fleet, incident, incidents, job, jobs, lifecycle, lifecycles, now, submit

STATIC = theme.STATIC

st.set_page_config(page_title="Trimtab", page_icon=str(STATIC / "mark.svg"), layout="wide")
st.logo(str(STATIC / ("logo-light.svg" if st.context.theme.type == "light" else "logo-dark.svg")), size="small")
theme.style()

pages = {
    "now": st.Page(now.page, title="Now", url_path="now", default=True),
    "fleet": st.Page(fleet.page, title="Fleet", url_path="fleet"),
    "jobs": st.Page(jobs.page, title="Jobs", url_path="jobs"),
    "job": st.Page(job.page, title="Job", url_path="job", visibility="hidden"),
    "lifecycles": st.Page(lifecycles.page, title="Lifecycles", url_path="lifecycles"),
    "lifecycle": st.Page(lifecycle.page, title="Lifecycle", url_path="lifecycle", visibility="hidden"),
    "experts": st.Page(experts.page, title="Experts", url_path="experts"),
    "submit": st.Page(submit.page, title="Submit", url_path="submit"),
    "incidents": st.Page(incidents.page, title="Incidents", url_path="incidents"),
    "incident": st.Page(incident.page, title="Incident", url_path="incident", visibility="hidden"),
}
st.session_state[theme.PAGES] = pages
st.navigation(list(pages.values()), position="top").run()
theme.foot()
