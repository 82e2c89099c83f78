"""How the teacher works: LangGraph graphs, the teacher port, prompts. Only importer of langgraph and
langchain."""
